//! A repair never makes things worse: at no moment of it, whatever a power cut leaves, is less of the disk readable than
//! before; a second one changes nothing; QEMU agrees.
//!
//! `COWSHED_SEED=N` draws other mutations and states.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod damage;
    pub mod qemu;
    pub mod rng;
    pub mod scratch;
}

use common::crash::{Effort, History, Sweep};
use common::damage::{Damage, Layout, all, make};
use common::qemu;
use common::rng::{Rng, seed_from_environment};
use common::scratch::Scratch;
use cowshed::disk::{Disk, Layer, RawLayer};
use cowshed::qcow2::{Image, OpenOptions, check, repair};
use cowshed::storage::Recorder;
use cowshed::units::GuestOffset;
use std::collections::HashMap;
use std::sync::Arc;

const REQUEST: usize = 4096;
const READ: u64 = 4 << 20;
/// States looked at for each moment of a repair.
const STATES: Effort = Effort { subsets: 12, chosen: 12 };

type Good = HashMap<&'static str, (Vec<u8>, Option<Vec<u8>>)>;

fn good_images() -> Good {
    let read = |name: &'static str| {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), name);
        let image = std::fs::read(folder.path().join("t.qcow2")).unwrap();
        (name, (image, std::fs::read(folder.path().join("b.raw")).ok()))
    };
    ["plain", "extended", "v2", "zstd"].map(read).into_iter().collect()
}

/// What each request reads; nothing where the image cannot be opened.
fn reads(bytes: &[u8], base: Option<&Vec<u8>>) -> Vec<Option<Vec<u8>>> {
    let Ok(image) = Image::open(Scratch::new(bytes), OpenOptions::default()) else {
        return Vec::new();
    };
    let mut layers = vec![Layer::qcow2(image)];
    if let Some(base) = base {
        layers.push(Layer::Raw(RawLayer::new(Scratch::new(base), false).unwrap()));
    }
    let disk = Disk::new(layers).unwrap();
    let places = (0..disk.size().min(READ)).step_by(REQUEST);
    places
        .map(|at| {
            let mut buf = vec![0; REQUEST.min((disk.size() - at) as usize)];
            disk.read(&mut buf, GuestOffset(at)).is_ok().then_some(buf)
        })
        .collect()
}

/// Whether everything that could be read before is read the same.
fn keeps(before: &[Option<Vec<u8>>], after: &[Option<Vec<u8>>]) -> bool {
    before.iter().enumerate().all(|(number, read)| read.is_none() || after.get(number) == Some(read))
}

/// Repairs one image and looks at every moment of it; what is wrong. Counts the states.
fn judge(name: &str, bytes: &[u8], base: Option<&Vec<u8>>, rng: &mut Rng, states: &mut u64) -> Vec<String> {
    let mut faults = Vec::new();
    let before = reads(bytes, base);
    let errors_before = check(Scratch::new(bytes)).map_or(u64::MAX, |report| report.error_count);
    let file = Scratch::new(bytes);
    let recorder = Arc::new(Recorder::new(file.clone()));
    let result = repair(recorder.clone());
    let history = History::new(Arc::new(bytes.to_vec()), recorder.events());
    let Ok(report) = result else {
        if file.bytes() != bytes {
            faults.push(format!("{name}: a refused repair changed the file"));
        }
        return faults;
    };
    let repaired = file.bytes();
    if !report.is_consistent() || report.leaks > 0 {
        faults.push(format!("{name}: after the repair: {report:?}"));
    }
    if !keeps(&before, &reads(&repaired, base)) {
        faults.push(format!("{name}: the repair changed what is read"));
    }
    repair(file.clone()).unwrap();
    if file.bytes() != repaired {
        faults.push(format!("{name}: a second repair changed something"));
    }
    let mut sweep = Sweep::new(&history);
    loop {
        let moment = sweep.count();
        for plan in sweep.plans(rng, STATES, true) {
            *states += 1;
            sweep.put(plan);
            let state = sweep.file().bytes();
            sweep.file().rewind();
            let strategy = plan.strategy;
            if !keeps(&before, &reads(&state, base)) {
                faults.push(format!("{name}: moment {moment}, {strategy:?}: less is readable than before"));
            }
            let again = Scratch::new(&state);
            match repair(again.clone()) {
                Ok(report) if report.is_consistent() && report.leaks == 0 => {}
                other => faults.push(format!("{name}: moment {moment}, {strategy:?}: {errors_before} errors before, a repair afterwards: {other:?}")),
            }
            if !keeps(&before, &reads(&again.bytes(), base)) {
                faults.push(format!(
                    "{name}: moment {moment}, {strategy:?}: the repair after the cut loses data"
                ));
            }
        }
        if !sweep.advance() {
            break;
        }
    }
    faults
}

fn agrees_with_qemu(name: &str, bytes: &[u8], base: Option<&Vec<u8>>) -> Option<String> {
    let file = Scratch::new(bytes);
    repair(file.clone()).ok()?;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.qcow2");
    std::fs::write(&path, file.bytes()).unwrap();
    if let Some(base) = base {
        std::fs::write(folder.path().join("b.raw"), base).unwrap();
    }
    let verdict = qemu::try_check(&path)?;
    (verdict.code != 0 && !verdict.text.contains("backing file"))
        .then(|| format!("{name}: qemu-img check after a repair: {}", verdict.text))
}

#[test]
fn a_repair_of_every_damage_keeps_what_could_be_read_at_every_cut() {
    let good = good_images();
    let first = seed_from_environment().unwrap_or(1);
    let (mut faults, mut states, mut repaired) = (Vec::new(), 0, 0);
    for (number, Damage { name, image, patch }) in (first..).zip(&all()) {
        let (bytes, base) = &good[image];
        let mut damaged = bytes.clone();
        patch(&mut damaged, &Layout::of(bytes));
        let name = format!("{image}: {name}, seed {number}");
        let found = judge(&name, &damaged, base.as_ref(), &mut Rng::new(number), &mut states);
        faults.extend(found);
        repaired += u32::from(repair(Scratch::new(&damaged)).is_ok());
        faults.extend(agrees_with_qemu(&name, &damaged, base.as_ref()));
    }
    println!("{repaired} repaired, {states} states");
    assert!(repaired >= 20, "only {repaired} of the damages are repaired");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(10)].join("\n"));
}

#[test]
fn a_repair_of_random_wrong_counts_keeps_what_could_be_read_at_every_cut() {
    let good = good_images();
    let first = seed_from_environment().unwrap_or(1);
    let (mut faults, mut states, mut repaired) = (Vec::new(), 0, 0);
    for seed in first..first + 60 {
        let mut rng = Rng::new(seed);
        let image = *rng.pick(&["plain", "extended", "v2", "zstd"]);
        let (bytes, base) = &good[image];
        let layout = Layout::of(bytes);
        let mut damaged = bytes.clone();
        for _ in 0..rng.between(1, 12) {
            let spot = *rng.pick(&[
                layout.refcount_block,
                layout.refcount_block,
                layout.refcount_table,
                layout.l2,
                layout.l1,
            ]);
            let at = spot + rng.below(if spot == layout.refcount_table { 24 } else { 96 }) as usize;
            // In tables only the bit that counting again sets right, and all bits of an unused place.
            damaged[at] = match spot {
                spot if spot == layout.l2 || spot == layout.l1 => {
                    damaged[at] ^ (u8::from(at.is_multiple_of(8)) << 7)
                }
                _ => rng.bits() as u8 & 3,
            };
        }
        let name = format!("{image}, seed {seed}");
        faults.extend(judge(&name, &damaged, base.as_ref(), &mut rng, &mut states));
        if repair(Scratch::new(&damaged)).is_ok() {
            repaired += 1;
            if repaired % 4 == 0 {
                faults.extend(agrees_with_qemu(&name, &damaged, base.as_ref()));
            }
        }
    }
    println!("{repaired} repaired, {states} states, seeds from {first} on");
    assert!(repaired >= 15, "only {repaired} are repaired");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(10)].join("\n"));
}
