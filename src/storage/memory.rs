//! A file in memory that fails where a test wants it to.

use super::{Run, Storage};
use crate::sync::Mutex;
use crate::units::{HostOffset, index, length};
use std::collections::BTreeMap;
use std::io;

const PAGE: u64 = 4096;

/// What a storage is asked to do, for choosing where it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Storage::read_at`].
    Read,
    /// [`Storage::write_at`].
    Write,
    /// [`Storage::punch`].
    Punch,
    /// [`Storage::sync`].
    Sync,
    /// [`Storage::set_len`].
    SetLen,
}

/// One planned failure.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// How many operations succeed before it, counted over all that `only` lets through.
    pub after: u64,
    /// Which operations it counts and hits; all of them when `None`.
    pub only: Option<Operation>,
    /// The error number that the caller sees.
    pub errno: i32,
    /// Whether every later operation fails as well.
    pub lasting: bool,
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
    fault: Option<Fault>,
    /// Whether a planned failure has come.
    hit: bool,
}

/// A sparse file in memory.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

impl Memory {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with the given bytes; pages of zeros become holes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let memory = Self::new();
        {
            let mut state = memory.state.lock();
            state.len = length(bytes.len());
            for (number, page) in bytes.chunks(index(PAGE)).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    state.write(page, length(number) * PAGE);
                }
            }
        }
        memory
    }

    /// All bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let state = self.state.lock();
        let mut bytes = vec![0; index(state.len)];
        state.read(&mut bytes, 0);
        bytes
    }

    /// Plans a failure, or takes the planned one back.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.state.lock();
        (state.fault, state.hit) = (fault, false);
    }

    /// Whether the failure that was planned last has come.
    #[must_use]
    pub fn fault_was_hit(&self) -> bool {
        self.state.lock().hit
    }
}

impl State {
    fn tick(&mut self, operation: Operation) -> io::Result<()> {
        let Some(fault) = &mut self.fault else { return Ok(()) };
        if fault.only.is_some_and(|only| only != operation) {
            return Ok(());
        }
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(fault.errno);
        if !fault.lasting {
            self.fault = None;
        }
        self.hit = true;
        Err(error)
    }

    fn read(&self, buf: &mut [u8], at: u64) {
        buf.fill(0);
        let end = at + length(buf.len());
        for (number, page) in self.pages.range(at / PAGE..end.div_ceil(PAGE)) {
            let start = number * PAGE;
            let (from, to) = (start.max(at), (start + PAGE).min(end));
            buf[index(from - at)..index(to - at)]
                .copy_from_slice(&page[index(from - start)..index(to - start)]);
        }
    }

    fn write(&mut self, data: &[u8], at: u64) {
        let end = at + length(data.len());
        for number in at / PAGE..end.div_ceil(PAGE) {
            let start = number * PAGE;
            let (from, to) = (start.max(at), (start + PAGE).min(end));
            let page = self.pages.entry(number).or_insert_with(|| vec![0; index(PAGE)].into());
            page[index(from - start)..index(to - start)]
                .copy_from_slice(&data[index(from - at)..index(to - at)]);
        }
        self.len = self.len.max(end);
    }

    fn zero(&mut self, at: u64, end: u64) {
        let whole = at.div_ceil(PAGE)..end / PAGE;
        let inside: Vec<u64> =
            self.pages.range(at / PAGE..end.div_ceil(PAGE)).map(|(number, _)| *number).collect();
        for number in inside {
            if whole.contains(&number) {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                let start = number * PAGE;
                page[index(start.max(at) - start)..index((start + PAGE).min(end) - start)].fill(0);
            }
        }
    }
}

impl Storage for Memory {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        let mut state = self.state.lock();
        state.tick(Operation::Read)?;
        state.read(buf, at.0);
        Ok(())
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        let mut state = self.state.lock();
        state.tick(Operation::Write)?;
        state.write(data, at.0);
        Ok(())
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.tick(Operation::Punch)?;
        let end = state.len.min(at.0.saturating_add(len));
        if at.0 < end {
            state.zero(at.0, end);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.state.lock().tick(Operation::Sync)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.tick(Operation::SetLen)?;
        let old = state.len;
        if len < old {
            state.zero(len, old);
        }
        state.len = len;
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        let state = self.state.lock();
        if at.0 >= state.len {
            return Ok(Run { len: u64::MAX - at.0, data: false });
        }
        let page = at.0 / PAGE;
        let data = state.pages.contains_key(&page);
        let end = if data {
            let mut next = page;
            while state.pages.contains_key(&next) {
                next += 1;
            }
            next * PAGE
        } else {
            state.pages.range(page..).next().map_or(state.len, |(number, _)| number * PAGE)
        };
        Ok(Run { len: end.min(state.len) - at.0, data })
    }
}
