//! Faults that image engines are known for, each as the one thing that must not happen here.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod images;
    pub mod qemu;
    pub mod rng;
}

use common::rng::Rng;
use common::{images, qemu};
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{BackingName, CreateOptions, Image, OpenOptions, check, create};
use cowshed::storage::{Memory, Run, Storage};
use cowshed::units::{GuestOffset, HostOffset};
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

const CLUSTER: u64 = 1 << 17;

/// A clone of 16 clusters over a base of noise.
fn clone_in(storage: &dyn Storage) -> Vec<u8> {
    let backing = Some(BackingName { file: "b.raw".into(), format: Some("raw".into()) });
    create(storage, &CreateOptions { backing, ..CreateOptions::new(16 * CLUSTER) }).unwrap();
    Rng::new(3).bytes(16 << 17)
}

fn open(storage: Arc<dyn Storage>, base: &[u8]) -> Disk {
    let options = OpenOptions { writable: true, metadata_cache: 0 };
    let top = Layer::qcow2(Image::open(storage, options).unwrap());
    let base = RawLayer::new(Arc::new(Memory::from_bytes(base)), false).unwrap();
    Disk::new(vec![top, Layer::Raw(base)]).unwrap()
}

fn assert_clean(storage: Arc<dyn Storage>) {
    let report = check(storage).unwrap();
    assert_eq!((report.error_count, report.leaks), (0, 0), "{:?}", report.errors);
}

/// A request that comes at the very moment when a sync has been done.
type Late = Box<dyn Fn(u32) + Send>;

/// A file in memory that lets a request come between the steps of a flush.
#[derive(Default)]
struct Interrupted {
    inner: Memory,
    late: Mutex<(u32, Option<Late>)>,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupted")
    }
}

impl Storage for Interrupted {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.inner.read_at(buf, at)
    }
    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.inner.write_at(data, at)
    }
    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.inner.punch(at, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()?;
        let (number, late) = {
            let mut late = self.late.lock().unwrap();
            late.0 += 1;
            (late.0, late.1.take())
        };
        if let Some(late) = late {
            late(number);
            self.late.lock().unwrap().1 = Some(late);
        }
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        self.inner.run_at(at)
    }
}

#[test]
fn a_late_punch_never_erases_what_was_written_meanwhile() {
    // The write comes after the first or the second sync of the flush that punches: into subclusters of a cluster that
    // stays, and into a cluster that is freed whole.
    for (when, discarded) in [(1, 16 << 10), (2, 16 << 10), (1, CLUSTER), (2, CLUSTER)] {
        let what = format!("after sync {when} of a flush that frees {discarded} bytes");
        let file = Arc::new(Interrupted::default());
        let mut model = clone_in(&file.inner);
        let disk = Arc::new(open(file.clone(), &model));
        disk.write(&[1; CLUSTER as usize], GuestOffset(0)).unwrap();
        model[..CLUSTER as usize].fill(1);
        disk.flush().unwrap();
        disk.discard(GuestOffset(0), discarded).unwrap();
        disk.write(&[2; 4096], GuestOffset(7 * CLUSTER)).unwrap();
        model[7 << 17..(7 << 17) + 4096].fill(2);
        model[..discarded as usize].fill(0);
        let (late, hit) = (Arc::downgrade(&disk), Arc::new(OnceLock::new()));
        let said = hit.clone();
        *file.late.lock().unwrap() = (
            0,
            Some(Box::new(move |number| {
                if number == when {
                    let disk = late.upgrade().unwrap();
                    disk.write(&[9; 8192], GuestOffset(4096)).unwrap();
                    disk.write(&[9; 4096], GuestOffset(5 * CLUSTER)).unwrap();
                    said.set(()).unwrap();
                }
            })),
        );
        disk.flush().unwrap();
        assert!(hit.get().is_some(), "{what}: there was no such sync");
        disk.write(&[4; CLUSTER as usize], GuestOffset(3 * CLUSTER)).unwrap();
        model[3 << 17..4 << 17].fill(4);
        model[4096..4096 + 8192].fill(9);
        model[5 << 17..(5 << 17) + 4096].fill(9);
        images::assert_same(&images::read_all(&disk, 1), &model, &what);
        file.late.lock().unwrap().1 = None;
        disk.close().unwrap();
        assert_clean(file.clone());
        drop(disk);
        images::assert_same(&images::read_all(&open(file, &clone_in(&Memory::new())), 2), &model, &what);
    }
}

#[test]
fn the_images_own_first_clusters_are_never_written_for_the_guest() {
    let file = Arc::new(Memory::new());
    let base = clone_in(&*file);
    // Header, refcount table, its first block, L1 and the L2 table: what lies there from the start.
    let own = file.bytes().len() as u64 / CLUSTER;
    assert!(own >= 4, "{own} clusters");
    let header = file.bytes()[..CLUSTER as usize].to_vec();
    for round in 0..3 {
        let disk = open(file.clone(), &base);
        for number in 0..16 {
            disk.write(&vec![0xd1; 70_000], GuestOffset(number * CLUSTER)).unwrap();
            if number % 3 == round {
                disk.discard(GuestOffset(number * CLUSTER), CLUSTER).unwrap();
                disk.flush().unwrap();
            }
            let mut at = number * CLUSTER;
            while at < (number + 1) * CLUSTER {
                let extent = disk.extent(GuestOffset(at)).unwrap();
                let host = extent.host.filter(|_| extent.depth == Some(0));
                assert!(host.is_none_or(|host| host.0 >= own * CLUSTER), "the guest's bytes at {host:?}");
                at += extent.len;
            }
        }
        disk.close().unwrap();
        assert!(file.bytes()[..CLUSTER as usize] == header, "round {round}: the first cluster was changed");
        assert_clean(file.clone());
    }
}

#[test]
fn a_live_table_is_never_handed_out_for_data() {
    let folder = tempfile::tempdir().unwrap();
    // Snapshots share the tables, so that each one is copied, freed and found again by the allocator.
    qemu::step(folder.path(), "img create -q -f qcow2 -o cluster_size=4k t.qcow2 8M");
    qemu::step(folder.path(), "io t.qcow2 write -P 1 0 8M");
    let mut model = vec![1; 8 << 20];
    let mut rng = Rng::new(11);
    let path = folder.path().join("t.qcow2");
    for round in 0..4 {
        qemu::step(folder.path(), &format!("img snapshot -q -c s{round} t.qcow2"));
        if round == 2 {
            qemu::step(folder.path(), "img snapshot -q -d s0 t.qcow2");
        }
        let disk = images::open(&path, true);
        for number in 0..120 {
            let at = rng.below(2040) * 4096;
            let len = rng.between(1, 8) as usize * 4096;
            let data = rng.bytes(len);
            disk.write(&data, GuestOffset(at)).unwrap();
            model[at as usize..at as usize + data.len()].copy_from_slice(&data);
            if number % 10 == 0 {
                let at = rng.below(2040) * 4096;
                disk.discard(GuestOffset(at), 32768).unwrap();
                model[at as usize..at as usize + 32768].fill(0);
                disk.flush().unwrap();
            }
        }
        disk.close().unwrap();
        drop(disk);
        // A cluster used twice would be an error of both.
        qemu::assert_clean(&path, &format!("round {round}"));
        assert_eq!(images::check(&path).error_count, 0);
        images::assert_same(
            &images::read_all(&images::open(&path, false), round),
            &model,
            "what was written",
        );
    }
}

#[test]
fn a_backing_name_that_does_not_fit_into_the_first_cluster_is_refused() {
    let with_name = |cluster_bits, len| {
        let backing = Some(BackingName { file: "n".repeat(len), format: Some("raw".into()) });
        let file = Arc::new(Memory::new());
        let options =
            CreateOptions { cluster_bits, extended_l2: false, backing, ..CreateOptions::new(1 << 20) };
        create(&*file, &options).map(|()| file)
    };
    for (bits, fits, too_long) in [(9, 200, 420), (12, 1000, 1024), (16, 1023, 1024)] {
        let image = Image::open(with_name(bits, fits).unwrap(), OpenOptions::default()).unwrap();
        assert_eq!(image.backing().unwrap().file.len(), fits);
        let error = with_name(bits, too_long).expect_err("a name that is too long");
        assert!(error.to_string().contains("name"), "{error}");
    }
}
