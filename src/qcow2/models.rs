//! Models of the memory orderings, which processors may use more freely than this one does: the engine's own tables,
//! flags and look-ups, exhaustively within a bound of preemptions.

use super::commit::Commit;
use super::entry::RawEntry;
use super::geometry::Geometry;
use super::locks::Locks;
use super::tables::Tables;
use super::written::Written;
use super::{CreateOptions, Image, Nothing, OpenOptions, create};
use crate::error::Result;
use crate::storage::{Run, Storage};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::units::{GuestCluster, GuestOffset, HostOffset, index, length};
use loom::thread;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Explores a model with at most `preemptions` preemptions, and for at most `COWSHED_MODEL_SECONDS` (15).
fn explore(name: &str, preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let seconds = std::env::var("COWSHED_MODEL_SECONDS").map_or(15, |text| text.parse().expect("seconds"));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.max_duration = Some(Duration::from_secs(seconds));
    let played = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = played.clone();
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!("{name}: {} executions", played.load(std::sync::atomic::Ordering::Relaxed));
}

const OLD: RawEntry = RawEntry { word: 1, bitmap: 1 };
const NEW: RawEntry = RawEntry { word: 2, bitmap: 2 };

/// Slices of two-word entries over a file of words, and the locks of their clusters.
struct Slices {
    geometry: Geometry,
    tables: Tables,
    locks: Locks,
    file: Mutex<Vec<u64>>,
}

impl Slices {
    /// Three slices, of which two have room.
    fn new() -> Self {
        let geometry = Geometry::new(14, true, 12 << 14);
        let words = (0..24).map(|_| OLD.word).collect();
        Self {
            geometry,
            tables: Tables::new(geometry, 0),
            locks: Locks::new(geometry),
            file: Mutex::new(words),
        }
    }

    fn load(&self, slice: u64, words: &mut [u64]) -> Result<()> {
        let from = index(slice) * words.len();
        words.copy_from_slice(&self.file.lock().expect("the file")[from..from + words.len()]);
        Ok(())
    }

    fn read(&self, cluster: u64) -> RawEntry {
        let _shared = self.locks.share(self.geometry.start_of(GuestCluster(cluster)), 1);
        let (slice, entry) = self.geometry.slice_of(GuestCluster(cluster));
        self.tables.entry(slice, entry).unwrap_or_else(|| {
            let loaded = self.tables.slice(slice, |words| self.load(slice, words));
            loaded.expect("a slice").get(entry)
        })
    }

    fn publish(&self, cluster: u64, raw: RawEntry) {
        let _exclusive = self.locks.exclude(GuestCluster(cluster), &self.geometry);
        let (number, entry) = self.geometry.slice_of(GuestCluster(cluster));
        loop {
            let slice = self.tables.slice(number, |words| self.load(number, words)).expect("a slice");
            if self.tables.publish(&slice, entry, raw, |_| Ok(()), || ()).expect("published") {
                return;
            }
        }
    }

    fn commit(&self) {
        let snapshots = self.tables.snapshots(self.tables.take_dirty());
        for snapshot in &snapshots {
            let words = snapshot.bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
            let mut file = self.file.lock().expect("the file");
            let from = index(snapshot.slice.index) * words.len();
            file.splice(from..from + words.len(), words);
        }
        self.tables.written(&snapshots);
    }
}

fn is(entry: RawEntry, other: RawEntry) -> bool {
    (entry.word, entry.bitmap) == (other.word, other.bitmap)
}

#[test]
fn a_look_up_sees_an_entry_whole_and_never_older_than_it_must_be() {
    explore("look-up beside a change", 5, || {
        let slices = Arc::new(Slices::new());
        let (writer, done) = (slices.clone(), Arc::new(AtomicBool::new(false)));
        let said = done.clone();
        let thread = thread::spawn(move || {
            writer.publish(0, NEW);
            said.store(true, Ordering::Release);
        });
        let published = done.load(Ordering::Acquire);
        let seen = slices.read(0);
        assert!(is(seen, NEW) || is(seen, OLD) && !published, "{seen:?}, published: {published}");
        assert!(is(slices.read(1), OLD), "a neighbour changed");
        thread.join().expect("the writer");
        assert!(is(slices.read(0), NEW));
    });
}

#[test]
fn a_slice_that_is_evicted_beside_a_change_comes_back_with_it() {
    explore("eviction beside a change", 4, || {
        let slices = Arc::new(Slices::new());
        let writer = slices.clone();
        let thread = thread::spawn(move || {
            writer.publish(0, NEW);
            writer.commit();
        });
        // Each in another slice: the first one is evicted whenever it is clean.
        for cluster in [4, 8, 4] {
            assert!(is(slices.read(cluster), OLD));
        }
        let seen = slices.read(0);
        assert!(is(seen, NEW) || is(seen, OLD), "{seen:?}");
        thread.join().expect("the writer");
        assert!(is(slices.read(0), NEW));
    });
}

#[test]
fn a_commit_that_was_joined_knows_of_every_write_before_it() {
    explore("written before joined", 6, || {
        struct Disk {
            commit: Commit,
            data: [AtomicU64; 2],
            durable: [AtomicU64; 2],
            written: Written,
        }
        let zeros = || [AtomicU64::new(0), AtomicU64::new(0)];
        let disk = Arc::new(Disk {
            commit: Commit::default(),
            data: zeros(),
            durable: zeros(),
            written: Written::default(),
        });
        let work = |disk: &Disk, place: usize| {
            disk.data[place].store(7, Ordering::Relaxed);
            disk.written.set();
            let committed = disk.commit.join(|| {
                if disk.written.take() {
                    for (data, durable) in disk.data.iter().zip(&disk.durable) {
                        durable.store(data.load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                }
                Ok(())
            });
            committed.expect("committed");
            assert_eq!(disk.durable[place].load(Ordering::Relaxed), 7, "a flushed write is not durable");
        };
        let other = disk.clone();
        let thread = thread::spawn(move || work(&other, 0));
        work(&disk, 1);
        thread.join().expect("the other one");
    });
}

/// A file whose own lock no model knows of: it orders nothing between threads.
#[derive(Debug)]
struct File(Mutex<Vec<u8>>);

impl Storage for File {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        let bytes = self.0.lock().expect("the file");
        let start = bytes.len().min(index(at.0));
        let end = bytes.len().min(start + buf.len());
        buf[..end - start].copy_from_slice(&bytes[start..end]);
        buf[end - start..].fill(0);
        Ok(())
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        let mut bytes = self.0.lock().expect("the file");
        let (start, end) = (index(at.0), index(at.0) + data.len());
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(data);
        Ok(())
    }

    fn punch(&self, _: HostOffset, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(length(self.0.lock().expect("the file").len()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().expect("the file").resize(index(len), 0);
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        Ok(Run { len: u64::MAX - at.0, data: true })
    }
}

/// An image without any L2 table, cut behind its last structure, so that whatever is allocated lies past its end.
fn without_tables() -> Vec<u8> {
    let file = File(Mutex::default());
    create(&file, &CreateOptions { cluster_bits: 14, ..CreateOptions::new(8 << 14) }).expect("an image");
    let mut bytes = file.0.into_inner().expect("the file");
    let l1 = index(u64::from_be_bytes(*bytes[40..].first_chunk().expect("a header")));
    bytes[l1..l1 + 8].fill(0);
    bytes
}

#[test]
fn whoever_finds_a_new_table_or_cluster_finds_the_end_of_the_file_behind_it() {
    let bytes = without_tables();
    explore("the file's end", 4, move || {
        let options = OpenOptions { writable: true, metadata_cache: 0 };
        let image = Image::open(Arc::new(File(Mutex::new(bytes.clone()))), options).expect("an image");
        let image = Arc::new(image);
        let writer = image.clone();
        let thread = thread::spawn(move || writer.write(&[7; 512], GuestOffset(0), &Nothing));
        let mut seen = [1; 512];
        // A table, a cluster or the end that is not known yet would be an error here.
        image.read(&mut seen, GuestOffset(0), &Nothing).expect("the same cluster");
        assert!(seen == [0; 512] || seen == [7; 512]);
        image.read(&mut seen, GuestOffset(1 << 14), &Nothing).expect("its neighbour");
        assert!(seen == [0; 512]);
        thread.join().expect("the writer").expect("written");
        image.read(&mut seen, GuestOffset(0), &Nothing).expect("the same cluster");
        assert!(seen == [7; 512]);
    });
}
