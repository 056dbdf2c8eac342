//! Corrupt images end in a sentence: never in a panic, a hang, much memory or wrong bytes.
//!
//! `COWSHED_SEED=N cargo test --test qcow2_corrupt` draws other mutations.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod bounded;
    pub mod damage;
    pub mod qemu;
    pub mod rng;
}

use common::bounded::{self, within};
use common::damage::{Damage, Layout, all, make};
use common::qemu;
use common::rng::{Rng, seed_from_environment};
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{CheckReport, Image, OpenOptions, check};
use cowshed::storage::{Memory, Storage};
use cowshed::units::GuestOffset;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: bounded::Counting = bounded::Counting;

/// Only one test counts memory at a time.
static ALONE: Mutex<()> = Mutex::new(());

const LIMIT: Duration = Duration::from_secs(20);
const MEMORY: usize = 256 << 20;
const REQUEST: u64 = 4096;
/// Bytes read of a disk whose header claims a large one: from its start, and from its end.
const READ_AT_MOST: u64 = 8 << 20;

/// What our engine made of a hostile image.
struct Outcome {
    /// The sentence that opening ended in.
    refused: Option<cowshed::Error>,
    size: u64,
    /// What each request read, or its error.
    reads: Vec<(u64, Result<Vec<u8>, String>)>,
    check: Result<CheckReport, cowshed::Error>,
}

impl Outcome {
    fn sentences(&self) -> Vec<String> {
        let mut all: Vec<String> = self.refused.iter().map(ToString::to_string).collect();
        all.extend(self.reads.iter().filter_map(|(_, read)| read.clone().err()));
        match &self.check {
            Ok(report) => all.extend(report.errors.iter().cloned()),
            Err(error) => all.push(error.to_string()),
        }
        all
    }

    fn has_errors(&self) -> bool {
        self.refused.is_some() || self.check.as_ref().map_or(true, |report| report.error_count > 0)
    }

    fn is_noticed(&self) -> bool {
        !self.sentences().is_empty() || self.check.as_ref().is_ok_and(|report| report.leaks > 0)
    }
}

fn disk(storage: Arc<dyn Storage>, base: Option<Vec<u8>>, writable: bool) -> cowshed::Result<Disk> {
    let image = Image::open(storage, OpenOptions { writable, ..OpenOptions::default() })?;
    let mut layers = vec![Layer::Qcow2(Box::new(image))];
    if let Some(base) = base {
        layers.push(Layer::Raw(RawLayer::new(Arc::new(Memory::from_bytes(&base)), false)?));
    }
    Disk::new(layers)
}

fn places(size: u64) -> Vec<u64> {
    let end = size - size % REQUEST;
    let mut places: Vec<u64> = (0..size.min(READ_AT_MOST)).step_by(REQUEST as usize).collect();
    places.extend(
        (end.saturating_sub(64 * REQUEST)..end).step_by(REQUEST as usize).filter(|at| *at >= READ_AT_MOST),
    );
    places
}

/// Opens, reads, maps and checks an image.
fn examine(bytes: &[u8], base: Option<Vec<u8>>) -> Outcome {
    let check = check(Arc::new(Memory::from_bytes(bytes)));
    let disk = match disk(Arc::new(Memory::from_bytes(bytes)), base, false) {
        Ok(disk) => disk,
        Err(error) => return Outcome { refused: Some(error), size: 0, reads: Vec::new(), check },
    };
    let mut reads = Vec::new();
    for at in places(disk.size()) {
        let mut buf = vec![0xee; REQUEST.min(disk.size() - at) as usize];
        let read = disk.read(&mut buf, GuestOffset(at)).map(|()| buf).map_err(|error| error.to_string());
        reads.push((at, read));
        // An extent may fail where its table is damaged; it must only end.
        let _ = disk.extent(GuestOffset(at));
    }
    Outcome { refused: None, size: disk.size(), reads, check }
}

/// Writes into the image as if it were good. Whatever it answers, it must answer.
fn abuse(bytes: &[u8], base: Option<Vec<u8>>, seed: u64) {
    let Ok(disk) = disk(Arc::new(Memory::from_bytes(bytes)), base, true) else { return };
    let mut rng = Rng::new(seed);
    for _ in 0..12 {
        let at = rng.below(disk.size().min(READ_AT_MOST));
        let len = rng.between(1, 9000).min(disk.size().saturating_sub(at));
        let _ = match rng.below(4) {
            0 => disk.write_zeroes(GuestOffset(at), len),
            1 => disk.discard(GuestOffset(at), len),
            2 => disk.flush(),
            _ => disk.write(&rng.bytes(len as usize), GuestOffset(at)),
        };
    }
    let _ = disk.close();
}

/// The good images, by name: bytes of the image and of its base.
type Good = HashMap<&'static str, (Vec<u8>, Option<Vec<u8>>)>;

fn good_images() -> Good {
    let read = |name: &'static str| {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), name);
        qemu::assert_clean(&folder.path().join("t.qcow2"), name);
        let image = std::fs::read(folder.path().join("t.qcow2")).unwrap();
        (name, (image, std::fs::read(folder.path().join("b.raw")).ok()))
    };
    ["plain", "extended", "v2", "zstd"].map(read).into_iter().collect()
}

fn store(folder: &Path, bytes: &[u8], base: Option<&Vec<u8>>) -> PathBuf {
    std::fs::write(folder.join("t.qcow2"), bytes).unwrap();
    if let Some(base) = base {
        std::fs::write(folder.join("b.raw"), base).unwrap();
    }
    folder.join("t.qcow2")
}

/// Whether the header still names the base as it did.
fn names_its_base(image: &[u8]) -> bool {
    let field = |at: usize, width| image.get(at..at + width).map(|_| common::damage::get(image, at, width));
    let at = field(8, 8).unwrap_or(0) as usize;
    field(16, 4) == Some(5) && image.get(at..at + 5) == Some(b"b.raw")
}

fn compare_with_qemu(name: &str, outcome: &Outcome, path: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    // QEMU itself may hang on a hostile image; then there is nothing to compare with.
    if let Some(verdict) = qemu::try_check(path) {
        // The base's name and format are not the image's own affair: who opens the chain refuses them.
        let base = verdict.text.contains("backing file");
        let theirs_has_errors = verdict.code == 1 && !base || verdict.errors > 0;
        if theirs_has_errors && !outcome.has_errors() {
            faults.push(format!("{name}: qemu-img check finds errors, we find none: {}", verdict.text));
        }
        let ours = outcome.check.as_ref().map_or(0, |report| report.leaks);
        if verdict.code == 3 && ours != verdict.leaks && !outcome.has_errors() {
            faults.push(format!("{name}: qemu-img check finds {} leaks, we find {ours}", verdict.leaks));
        }
    }
    if outcome.refused.is_none()
        && outcome.size < 64 << 20
        && let Some(theirs) = qemu::try_convert(path, None)
    {
        let wrong = outcome.reads.iter().find(|(at, read)| {
            let from = *at as usize;
            read.as_ref().is_ok_and(|bytes| theirs.get(from..from + bytes.len()) != Some(&bytes[..]))
        });
        if let Some((at, _)) = wrong {
            faults.push(format!(
                "{name}: we read other bytes than qemu-img convert at {at:#x}, without an error"
            ));
        }
    }
    faults
}

fn unclear(sentence: &str) -> bool {
    sentence.len() < 15
        || sentence.len() > 600
        || sentence.chars().any(char::is_control)
        || sentence.contains("panick")
        || sentence.contains("overflow")
        || sentence.contains("{}")
}

/// All that is wrong with how we treat one damaged image.
fn judge(name: &str, bytes: Vec<u8>, base: Option<Vec<u8>>) -> Vec<String> {
    let mut faults = Vec::new();
    let base = base.filter(|_| names_its_base(&bytes));
    bounded::reset_peak();
    let before = bounded::peak();
    let result = {
        let (bytes, base) = (bytes.clone(), base.clone());
        within(LIMIT, move || {
            abuse(&bytes, base.clone(), 1);
            examine(&bytes, base)
        })
    };
    let used = bounded::peak() - before;
    if used > MEMORY {
        faults.push(format!("{name}: took {} MiB of memory", used >> 20));
    }
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    println!("{name}: {}", outcome.sentences().first().map_or("no sentence", String::as_str));
    if !outcome.is_noticed() {
        faults.push(format!("{name}: nobody notices, neither open nor read nor check"));
    }
    if let Some(sentence) = outcome.sentences().into_iter().find(|sentence| unclear(sentence)) {
        faults.push(format!("{name}: not a clear sentence: {sentence:?}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path(), &bytes, base.as_ref());
    faults.extend(compare_with_qemu(name, &outcome, &path));
    faults
}

#[test]
fn every_damage_ends_in_a_sentence_and_never_in_wrong_bytes() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let good = good_images();
    let damages = all();
    assert!(damages.len() >= 40, "only {} damages", damages.len());
    let mut faults = Vec::new();
    for Damage { name, image, patch } in &damages {
        let (bytes, base) = &good[image];
        let mut damaged = bytes.clone();
        patch(&mut damaged, &Layout::of(bytes));
        assert!(damaged != *bytes, "{name}: the damage changes nothing");
        faults.extend(judge(&format!("{image}: {name}"), damaged, base.clone()));
    }
    println!("{} damages", damages.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_good_images_that_are_damaged_here_have_no_fault() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (name, (bytes, base)) in good_images() {
        let outcome = examine(&bytes, base.clone());
        assert!(!outcome.is_noticed(), "{name}: {:?}", outcome.sentences());
        let folder = tempfile::tempdir().unwrap();
        let path = store(folder.path(), &bytes, base.as_ref());
        let faults = compare_with_qemu(name, &outcome, &path);
        assert!(faults.is_empty(), "{faults:?}");
    }
}

#[test]
fn every_corrupt_fixture_is_refused_or_reported() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corrupt");
    let mut faults = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "qcow2") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            faults.extend(judge(&name, std::fs::read(&path).unwrap(), None));
            count += 1;
        }
    }
    assert!(count >= 4, "only {count} fixtures in {}", folder.display());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_structure_that_is_counted_as_free_is_never_given_to_data() {
    let good = good_images();
    let mut faults = Vec::new();
    let names = ["header counted 0", "L1 counted 0", "L2 table counted 0", "itself counted 0"];
    for Damage { name, image, patch } in all() {
        if !names.iter().any(|wanted| name == format!("refcount block: {wanted}")) {
            continue;
        }
        let (bytes, base) = &good[image];
        let mut damaged = bytes.clone();
        patch(&mut damaged, &Layout::of(bytes));
        let storage = Arc::new(Memory::from_bytes(&damaged));
        let Ok(disk) = disk(storage.clone(), base.clone(), true) else { continue };
        let mut model = vec![0; disk.size() as usize];
        disk.read(&mut model, GuestOffset(0)).unwrap();
        let mut refused = false;
        for at in (3 << 20..(3u64 << 20) + 100 * 4096).step_by(4096) {
            match disk.write(&[0xaa; 4096], GuestOffset(at)) {
                Ok(()) => model[at as usize..at as usize + 4096].fill(0xaa),
                Err(error) => {
                    println!("{name}: {error}");
                    refused = true;
                    break;
                }
            }
        }
        let closed = disk.close();
        drop(disk);
        let mut got = vec![0; model.len()];
        match examine_disk(storage, base.clone(), &mut got) {
            Ok(()) if got == model || refused || closed.is_err() => {}
            Ok(()) => faults.push(format!("{name}: other bytes after writes that succeeded")),
            Err(error) => faults.push(format!("{name}: the writes destroyed the image: {error}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn examine_disk(storage: Arc<dyn Storage>, base: Option<Vec<u8>>, buf: &mut [u8]) -> cowshed::Result<()> {
    disk(storage, base, false)?.read(buf, GuestOffset(0))
}

/// Changes one to four bytes, in the metadata more often than elsewhere.
fn mutate(bytes: &mut [u8], layout: &Layout, rng: &mut Rng) {
    let spots = [0, 0, layout.l1, layout.l2, layout.refcount_table, layout.refcount_block, layout.snapshots];
    for _ in 0..rng.between(1, 4) {
        let at = match rng.below(8) {
            0 => rng.below(bytes.len() as u64) as usize,
            1 | 2 => layout.extensions + rng.below(64) as usize,
            _ => *rng.pick(&spots) + rng.below(112) as usize,
        };
        if let Some(byte) = bytes.get_mut(at) {
            *byte = match rng.below(4) {
                0 => *byte ^ (1 << rng.below(8)),
                1 => 0xff,
                2 => 0,
                _ => rng.bits() as u8,
            };
        }
    }
}

#[test]
fn random_mutations_never_panic_and_every_fiftieth_reads_as_qemu_reads_it() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let good = good_images();
    let first = seed_from_environment().unwrap_or(1);
    let mut faults = Vec::new();
    for number in 0..2000 {
        let seed = first + number;
        let mut rng = Rng::new(seed);
        let image = *rng.pick(&["plain", "extended", "v2", "zstd"]);
        let (bytes, base) = &good[image];
        let mut mutated = bytes.clone();
        mutate(&mut mutated, &Layout::of(bytes), &mut rng);
        let name = format!("mutation {seed} of {image}");
        let base = base.clone().filter(|_| names_its_base(&mutated));
        bounded::reset_peak();
        let before = bounded::peak();
        let result = {
            let (bytes, base) = (mutated.clone(), base.clone());
            within(LIMIT, move || {
                abuse(&bytes, base.clone(), seed);
                examine(&bytes, base)
            })
        };
        if bounded::peak() - before > MEMORY {
            faults.push(format!("{name}: took {} MiB of memory", (bounded::peak() - before) >> 20));
        }
        match result {
            Err(error) => faults.push(format!("{name}: {error}")),
            Ok(outcome) if number % 50 == 0 => {
                let folder = tempfile::tempdir().unwrap();
                let path = store(folder.path(), &mutated, base.as_ref());
                faults.extend(compare_with_qemu(&name, &outcome, &path));
            }
            Ok(_) => {}
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
