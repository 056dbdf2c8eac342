//! A file in memory that is changed and put back thousands of times a second.
//!
//! It remembers which pages differ from what it was when it was last settled; [`Scratch::rewind`] copies only those.

use cowshed::storage::{Effect, Run, Storage};
use cowshed::units::HostOffset;
use std::io;
use std::sync::{Arc, Mutex};

const PAGE: usize = 4096;

/// Bytes, and which pages of them the host would store.
#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    len: usize,
    present: Vec<bool>,
}

#[derive(Debug)]
struct State {
    now: Content,
    settled: Content,
    /// Pages in which the two may differ, each once.
    changed: Vec<usize>,
    is_changed: Vec<bool>,
}

/// A file that can be put back to what it was.
#[derive(Debug)]
pub struct Scratch(Mutex<State>);

impl Scratch {
    /// A settled file with these bytes; pages of zeros are holes.
    pub fn new(bytes: &[u8]) -> Arc<Self> {
        let mut now = Content { bytes: bytes.to_vec(), len: bytes.len(), present: Vec::new() };
        now.present = bytes.chunks(PAGE).map(|page| !cowshed::zero::is_zero(page)).collect();
        now.bytes.resize(now.present.len() * PAGE, 0);
        let is_changed = vec![false; now.present.len()];
        Arc::new(Self(Mutex::new(State { settled: now.clone(), now, changed: Vec::new(), is_changed })))
    }

    /// What it holds now.
    pub fn bytes(&self) -> Vec<u8> {
        self.with(<[u8]>::to_vec)
    }

    /// Shows its bytes to `see`, without a copy.
    pub fn with<T>(&self, see: impl FnOnce(&[u8]) -> T) -> T {
        let state = self.0.lock().unwrap();
        see(&state.now.bytes[..state.now.len])
    }

    /// Does `effect` to it.
    pub fn apply(&self, effect: &Effect) {
        let mut state = self.0.lock().unwrap();
        match effect {
            Effect::Write(at, data) => state.write(at.0 as usize, data),
            Effect::Punch(at, len) => state.punch(at.0, *len),
            Effect::SetLen(len) => state.set_len(*len as usize),
            Effect::Sync => {}
        }
    }

    /// Writes `data` at `at`.
    pub fn write(&self, at: usize, data: &[u8]) {
        self.0.lock().unwrap().write(at, data);
    }

    /// Makes it at least `len` bytes long.
    pub fn reach(&self, len: u64) {
        let mut state = self.0.lock().unwrap();
        let len = state.now.len.max(len as usize);
        state.set_len(len);
    }

    /// From now on it is rewound to what it is now.
    pub fn settle(&self) {
        let State { now, settled, changed, is_changed } = &mut *self.0.lock().unwrap();
        settled.copy(now, changed);
        changed.drain(..).for_each(|page| is_changed[page] = false);
    }

    /// Puts it back.
    pub fn rewind(&self) {
        let State { now, settled, changed, is_changed } = &mut *self.0.lock().unwrap();
        now.copy(settled, changed);
        changed.drain(..).for_each(|page| is_changed[page] = false);
    }
}

impl Content {
    fn resize(&mut self, pages: usize) {
        if self.present.len() < pages {
            self.present.resize(pages, false);
            self.bytes.resize(pages * PAGE, 0);
        }
    }

    /// Becomes what `from` is, of which it differs in `pages` only.
    fn copy(&mut self, from: &Self, pages: &[usize]) {
        self.resize(from.present.len());
        for page in pages.iter().filter(|page| **page < from.present.len()) {
            let range = page * PAGE..(page + 1) * PAGE;
            self.bytes[range.clone()].copy_from_slice(&from.bytes[range]);
            self.present[*page] = from.present[*page];
        }
        for page in pages.iter().filter(|page| **page >= from.present.len()) {
            self.bytes[page * PAGE..(page + 1) * PAGE].fill(0);
            self.present[*page] = false;
        }
        self.len = from.len;
    }
}

impl State {
    fn mark(&mut self, from: usize, to: usize) {
        let pages = to.div_ceil(PAGE);
        if self.is_changed.len() < pages {
            self.is_changed.resize(pages, false);
            self.now.resize(pages);
        }
        for page in from / PAGE..pages {
            if !std::mem::replace(&mut self.is_changed[page], true) {
                self.changed.push(page);
            }
        }
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        self.mark(at, end);
        self.now.bytes[at..end].copy_from_slice(data);
        self.now.present[at / PAGE..end.div_ceil(PAGE)].fill(true);
        self.now.len = self.now.len.max(end);
    }

    fn punch(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.now.len as u64) as usize;
        let at = at as usize;
        if at >= end {
            return;
        }
        self.mark(at, end);
        self.now.bytes[at..end].fill(0);
        let (first, last) = (at.div_ceil(PAGE), end / PAGE);
        if first < last {
            self.now.present[first..last].fill(false);
        }
    }

    fn set_len(&mut self, len: usize) {
        if len < self.now.len {
            self.punch(len as u64, u64::MAX);
        }
        self.now.resize(len.div_ceil(PAGE));
        self.is_changed.resize(self.now.present.len(), false);
        self.now.len = len;
    }
}

impl Storage for Scratch {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let start = at.0.min(state.now.len as u64) as usize;
        let end = state.now.len.min(start.saturating_add(buf.len()));
        buf[..end - start].copy_from_slice(&state.now.bytes[start..end]);
        buf[end - start..].fill(0);
        Ok(())
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.write(at.0 as usize, data);
        Ok(())
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().punch(at.0, len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().set_len(len as usize);
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        let state = self.0.lock().unwrap();
        let len = state.now.len as u64;
        if at.0 >= len {
            return Ok(Run { len: u64::MAX - at.0, data: false });
        }
        let page = at.0 as usize / PAGE;
        let data = state.now.present[page];
        let rest = state.now.present[page..].iter().take_while(|present| **present == data).count();
        let end = (((page + rest) * PAGE) as u64).min(len);
        Ok(Run { len: end - at.0, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewound_file_is_what_it_was() {
        let file = Scratch::new(&[7; 10_000]);
        for effect in [
            Effect::Write(HostOffset(9_000), vec![1; 20_000]),
            Effect::Punch(HostOffset(100), 9_000),
            Effect::SetLen(40_000),
            Effect::SetLen(50),
        ] {
            file.apply(&effect);
        }
        assert_eq!(file.bytes(), [7; 50]);
        file.rewind();
        assert_eq!(file.bytes(), [7; 10_000]);
        file.write(20_000, &[9]);
        file.settle();
        file.apply(&Effect::Punch(HostOffset(0), u64::MAX));
        file.rewind();
        assert_eq!(file.bytes(), [&[7; 10_000][..], &[0; 10_000], &[9]].concat());
        assert!(!file.run_at(HostOffset(12_288)).unwrap().data);
    }
}
