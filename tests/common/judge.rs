//! Whether one state after a power cut keeps every promise.

use super::crash::{Effort, History, Sweep};
use super::layouts::Layout;
use super::reader::Reader;
use super::rng::Rng;
use super::scratch::Scratch;
use super::stamps::{Guest, Legal};
use super::{images, qemu};
use cowshed::qcow2::{check, repair};
use cowshed::storage::{Effect, Recorder};
use cowshed::units::GuestOffset;
use std::path::Path;
use std::sync::Arc;

/// Clusters that are counted ahead of use.
const RUN: u64 = 64;

/// The judge of one workload on one layout.
pub struct Judge<'a> {
    layout: &'a Layout,
    legal: Legal<'a>,
    reader: &'a mut Reader,
    /// The bytes of the internal snapshots as they must stay.
    snapshots: Vec<u8>,
    got: Vec<u8>,
    /// The most clusters that a state leaked beyond what was taken and freed.
    pub worst_leak: u64,
}

impl<'a> Judge<'a> {
    /// A judge of the states that `guest` may have left behind on `layout`.
    pub fn new(layout: &'a Layout, guest: &'a Guest, reader: &'a mut Reader) -> Self {
        reader
            .examine(&layout.image, &layout.base)
            .unwrap_or_else(|error| panic!("{}: {error}", layout.name));
        let snapshots = reader.snapshots.clone();
        Self { layout, legal: guest.legal(), reader, snapshots, got: Vec::new(), worst_leak: 0 }
    }

    /// Goes to the moment with `count` events.
    pub fn advance(&mut self, count: usize) {
        self.legal.advance(count);
    }

    /// Says which promise the state in `file` breaks.
    pub fn judge(&mut self, file: &Arc<Scratch>) -> Result<(), String> {
        file.with(|bytes| self.reader.examine(bytes, &self.layout.base))?;
        self.legal.judge(&self.reader.contents)?;
        if self.reader.snapshots != self.snapshots {
            return Err("the bytes of an internal snapshot changed".into());
        }
        self.judge_leaks()?;
        let report = check(file.clone()).map_err(|error| format!("check: {error}"))?;
        if report.error_count != 0 || report.leaks != self.reader.leaks {
            let (leaks, errors) = (report.leaks, report.errors);
            return Err(format!("check: {leaks} leaks, the reader has {}; {errors:?}", self.reader.leaks));
        }
        self.read_by_us(file)
    }

    /// What leaks is what was reserved, what was taken since the last flush, and what was freed since the one before.
    fn judge_leaks(&mut self) -> Result<(), String> {
        let leaks = self.reader.leaks;
        if self.legal.is_closed() {
            return if leaks == 0 { Ok(()) } else { Err(format!("{leaks} leaks right after a close")) };
        }
        let bits = self.layout.bits;
        let (taken, freed) = self.legal.taken_and_freed(bits);
        // Packed bytes may reach over a border, so that a guest cluster holds two host clusters; tables come on top.
        let bound = taken + 2 * freed;
        self.worst_leak = self.worst_leak.max(leaks.saturating_sub(bound));
        if leaks > bound + RUN + self.layout.spare_tables() {
            return Err(format!("{leaks} leaks with {taken} clusters taken and {freed} freed"));
        }
        Ok(())
    }

    fn read_by_us(&mut self, file: &Arc<Scratch>) -> Result<(), String> {
        let disk = self.layout.open(file.clone()).map_err(|error| format!("open: {error}"))?;
        self.got.resize(self.layout.size as usize, 0xee);
        disk.read(&mut self.got, GuestOffset(0)).map_err(|error| format!("read: {error}"))?;
        if self.got != self.reader.contents {
            return Err("the engine and the reader read different bytes".into());
        }
        Ok(())
    }

    /// As [`Judge::judge`], and QEMU must agree; then life goes on. Changes the file.
    pub fn judge_deeply(&mut self, file: &Arc<Scratch>, seed: u64) -> Result<(), String> {
        self.judge(file)?;
        as_qemu_sees_it(self.layout, &file.bytes(), &self.reader.contents)?;
        // What is written now is there, and nothing else moves.
        let disk = self.layout.open(file.clone()).map_err(|error| format!("open: {error}"))?;
        let mut model = self.reader.contents.clone();
        super::ops::play(&disk, &mut model, &mut Rng::new(seed), 10, &self.layout.name);
        disk.close().map_err(|error| format!("close: {error}"))?;
        as_qemu_sees_it(self.layout, &file.bytes(), &model)
            .map_err(|error| format!("{error}, after going on"))
    }

    /// Repairs the state in `file`, with power cuts in the repair: no state of it is worse than before, a repair after
    /// it mends the rest, and a repair of what is whole changes nothing. Changes the file.
    pub fn judge_repair(
        &mut self,
        file: &Arc<Scratch>,
        rng: &mut Rng,
        effort: Effort,
    ) -> Result<u64, String> {
        file.with(|bytes| self.reader.examine(bytes, &self.layout.base))?;
        let contents = self.reader.contents.clone();
        let before = Arc::new(file.bytes());
        let recorder = Arc::new(Recorder::new(Scratch::new(&before)));
        let report = repair(recorder.clone()).map_err(|error| format!("repair: {error}"))?;
        if report.error_count + report.leaks != 0 {
            return Err(format!("after a repair: {} leaks, {:?}", report.leaks, report.errors));
        }
        let history = History::new(before, recorder.events());
        let mut sweep = Sweep::new(&history);
        let mut states = 0;
        loop {
            for plan in sweep.plans(rng, effort, false) {
                sweep.put(plan);
                states += 1;
                let result = self.judge_cut_repair(sweep.file(), &contents);
                result
                    .map_err(|error| format!("{error}, in a repair cut after {}, {plan:?}", sweep.count()))?;
                sweep.file().rewind();
            }
            if !sweep.advance() {
                return Ok(states);
            }
        }
    }

    fn judge_cut_repair(&mut self, file: &Arc<Scratch>, contents: &[u8]) -> Result<(), String> {
        for round in ["a cut repair", "a repair of it"] {
            file.with(|bytes| self.reader.examine(bytes, &self.layout.base))
                .map_err(|error| format!("{error}, after {round}"))?;
            if self.reader.contents != contents || self.reader.snapshots != self.snapshots {
                return Err(format!("{round} changed the disk"));
            }
            repair(file.clone()).map_err(|error| format!("{error}, after {round}"))?;
        }
        if self.reader.leaks != 0 {
            return Err(format!("{} leaks after a second repair", self.reader.leaks));
        }
        let recorder = Arc::new(Recorder::new(file.clone()));
        repair(recorder.clone()).map_err(|error| format!("the third repair: {error}"))?;
        let changes = recorder.events().into_iter().filter(|event| event.effect != Effect::Sync).count();
        if changes == 0 { Ok(()) } else { Err(format!("a repair of a whole image made {changes} changes")) }
    }
}

fn as_qemu_sees_it(layout: &Layout, image: &[u8], contents: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("t.qcow2");
    std::fs::write(path, image).unwrap();
    std::fs::write(folder.path().join("b.raw"), &*layout.base).unwrap();
    let verdict = qemu::check(path);
    if !matches!(verdict.code, 0 | 3) {
        return Err(format!("qemu-img check: {}", verdict.text));
    }
    images::assert_same(&qemu::convert(path), contents, &format!("{}, by QEMU", layout.name));
    Ok(())
}

/// What was done over many workloads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub workloads: u64,
    pub states: u64,
    /// States that QEMU judged as well, and states of cut repairs.
    pub deep: u64,
    pub repairs: u64,
    pub worst_leak: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.workloads += other.workloads;
        self.states += other.states;
        self.deep += other.deep;
        self.repairs += other.repairs;
        self.worst_leak = self.worst_leak.max(other.worst_leak);
    }
}

/// How thoroughly a workload is judged.
#[derive(Clone, Copy, Debug)]
pub struct Care {
    pub effort: Effort,
    /// One of so many states is also judged by QEMU, and written on.
    pub deep: u64,
    /// One of so many states is also repaired, with cuts.
    pub repair: u64,
}

/// One workload on one layout, and the seed or number that plays it again.
#[derive(Clone, Copy)]
pub struct Trial<'a> {
    pub layout: &'a Layout,
    pub guest: &'a Guest,
    pub history: &'a History,
    pub seed: u64,
    /// The first moment that is judged.
    pub from: usize,
}

impl Trial<'_> {
    /// Judges the states of every moment; the first that breaks a promise is named in the error.
    pub fn run(&self, reader: &mut Reader, care: Care) -> Result<Tally, String> {
        let mut rng = Rng::new(self.seed);
        // Which states are taken deeper follows from the seed and the layout, and not from what was played before.
        let name = self.layout.name.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
        let mut lots = Rng::new(self.seed ^ name);
        let mut tally = Tally { workloads: 1, ..Tally::default() };
        let mut judge = Judge::new(self.layout, self.guest, reader);
        let mut sweep = Sweep::new(self.history);
        loop {
            judge.advance(sweep.count());
            let count = sweep.count();
            let since = self.guest.flushed_in(count..=count);
            let plans =
                if count < self.from { Vec::new() } else { sweep.plans(&mut rng, care.effort, since) };
            for plan in plans {
                sweep.put(plan);
                tally.states += 1;
                let result = self.one(&mut judge, &sweep, &mut lots, care, &mut tally);
                result.map_err(|error| {
                    format!(
                        "{}, COWSHED_SEED={}, cut after {} events, {plan:?}: {error}\nthe guest did\n{}",
                        self.layout.name,
                        self.seed,
                        sweep.count(),
                        self.guest.story()
                    )
                })?;
                sweep.file().rewind();
            }
            if !sweep.advance() {
                tally.worst_leak = judge.worst_leak;
                return Ok(tally);
            }
        }
    }

    fn one(
        &self,
        judge: &mut Judge<'_>,
        sweep: &Sweep<'_>,
        lots: &mut Rng,
        care: Care,
        tally: &mut Tally,
    ) -> Result<(), String> {
        if lots.below(care.deep) == 0 {
            tally.deep += 1;
            return judge.judge_deeply(sweep.file(), lots.bits());
        }
        judge.judge(sweep.file())?;
        if lots.below(care.repair) == 0 {
            tally.repairs += judge.judge_repair(sweep.file(), lots, Effort { subsets: 64, chosen: 4 })?;
        }
        Ok(())
    }
}
