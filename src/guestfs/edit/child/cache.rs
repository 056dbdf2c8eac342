//! Blocks that libext2fs reads again and again, and those it changed.
//!
//! A write that changes nothing is dropped: libext2fs writes every bitmap at the end, and most are as they were.

use super::super::wire::{Answer, MOST};
use super::port::Port;
use crate::units::{index, length};
use std::collections::HashMap;
use std::io;

/// The grain, whatever the filesystem's blocks are.
const UNIT: u64 = 4096;
/// A read brings its neighbours along, up to this many units: bitmaps and inode tables lie side by side.
const AROUND: u64 = 8;
/// Units kept at most: 64 MiB.
const KEPT: usize = 16 << 10;

struct Unit {
    bytes: Box<[u8]>,
    dirty: bool,
}

/// The filesystem's bytes.
pub(super) struct Cache {
    pub(super) port: Port,
    size: u64,
    units: HashMap<u64, Unit>,
}

impl Cache {
    pub(super) fn new(port: Port, size: u64) -> Self {
        Self { port, size, units: HashMap::new() }
    }

    fn check(&self, at: u64, len: u64) -> io::Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub(super) fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(at, length(buf.len()))?;
        let mut done = 0;
        while done < buf.len() {
            let (number, from) = split(at + length(done));
            let unit = self.unit(number, at + length(buf.len()))?;
            let len = (unit.bytes.len() - from).min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&unit.bytes[from..from + len]);
            done += len;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check(at, length(data.len()))?;
        let mut done = 0;
        while done < data.len() {
            let (number, from) = split(at + length(done));
            let unit = self.unit(number, at + length(data.len()))?;
            let len = (unit.bytes.len() - from).min(data.len() - done);
            let (old, new) = (&mut unit.bytes[from..from + len], &data[done..done + len]);
            if old != new {
                old.copy_from_slice(new);
                unit.dirty = true;
            }
            done += len;
        }
        Ok(())
    }

    /// Unit `number`; when it must be asked for, those up to the byte `end` and its neighbours come along.
    fn unit(&mut self, number: u64, end: u64) -> io::Result<&mut Unit> {
        if !self.units.contains_key(&number) {
            if self.units.len() >= KEPT {
                self.flush()?;
                self.units.clear();
            }
            let first = number / AROUND * AROUND;
            let last = end.div_ceil(UNIT).next_multiple_of(AROUND).max(first + AROUND);
            let end = (last * UNIT).min(self.size).min(first * UNIT + u64::from(MOST));
            let len = u32::try_from(end - first * UNIT).unwrap_or(MOST);
            let bytes = self.port.read(first * UNIT, len)?;
            for (number, bytes) in (first..).zip(bytes.chunks(index(UNIT))) {
                // What is here already may have changed.
                self.units.entry(number).or_insert_with(|| Unit { bytes: bytes.into(), dirty: false });
            }
        }
        self.units.get_mut(&number).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The parent changes these bytes: what is known of them is forgotten, but not what lies beside them.
    pub(super) fn forget(&mut self, at: u64, len: u64) -> io::Result<()> {
        let end = at + len;
        for number in at / UNIT..end.div_ceil(UNIT) {
            let start = number * UNIT;
            let Some(unit) = self.units.remove(&number) else { continue };
            if unit.dirty && (start < at || start + length(unit.bytes.len()) > end) {
                self.port.say(&Answer::Write { at: start, data: unit.bytes.into() })?;
            }
        }
        Ok(())
    }

    /// Hands every change to the parent.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut dirty: Vec<u64> =
            self.units.iter().filter(|(_, unit)| unit.dirty).map(|(number, _)| *number).collect();
        dirty.sort_unstable();
        let (mut start, mut run): (u64, Vec<u8>) = (0, Vec::new());
        for number in dirty {
            let Some(unit) = self.units.get_mut(&number) else { continue };
            if start + length(run.len()) != number * UNIT || run.len() >= index(u64::from(MOST) / 4) {
                self.port.say(&Answer::Write { at: start, data: std::mem::take(&mut run) })?;
                start = number * UNIT;
            }
            run.extend_from_slice(&unit.bytes);
            unit.dirty = false;
        }
        if !run.is_empty() {
            self.port.say(&Answer::Write { at: start, data: run })?;
        }
        Ok(())
    }
}

fn split(at: u64) -> (u64, usize) {
    (at / UNIT, index(at % UNIT))
}
