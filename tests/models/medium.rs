//! A file on a medium with a write cache: the scheduler may run others before each operation, and within a sync.

use crate::rng::Rng;
use cowshed::storage::{Run, Storage};
use cowshed::units::HostOffset;
use std::io;
use std::sync::Arc;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Effect {
    Write(usize, Vec<u8>),
    Punch(usize, usize),
    SetLen(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFault {
    /// The n-th sync from now on fails, counted from 0.
    Fails(u32),
    /// The n-th sync from now on panics.
    Panics(u32),
}

#[derive(Debug, Default)]
struct State {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// What is in `current` and not in `durable`.
    pending: Vec<Effect>,
    fault: Option<SyncFault>,
}

/// One file.
#[derive(Debug)]
pub struct Medium {
    /// Taken and left at once: a place where others may run. A quiet medium, which one thread uses alone, has none.
    turn: Option<shuttle::sync::Mutex<()>>,
    /// Never waited for: no other thread runs while it is held.
    state: std::sync::Mutex<State>,
}

impl Medium {
    /// A file that holds `bytes`, durably.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { turn: Some(shuttle::sync::Mutex::new(())), ..Self::with(bytes) })
    }

    /// The same for one thread alone.
    pub fn quiet(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self::with(bytes))
    }

    fn with(bytes: Vec<u8>) -> Self {
        let state = State { durable: bytes.clone(), current: bytes, ..State::default() };
        Self { turn: None, state: std::sync::Mutex::new(state) }
    }

    fn turn(&self) {
        take_turn(self.turn.as_ref());
    }

    pub fn set_fault(&self, fault: SyncFault) {
        self.state.lock().unwrap().fault = Some(fault);
    }

    /// What the file holds, durable or not.
    pub fn bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap().current.clone()
    }

    /// What is left when power goes now: what is durable, and of the rest what `rng` chooses, whole, torn or nothing.
    pub fn cut(&self, mut rng: Rng) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let mut bytes = state.durable.clone();
        let kept = *rng.pick(&[0, 50, 50, 90, 100]);
        // Lengths and holes are the file system's own: of those a prefix holds.
        let mut lost = false;
        for effect in &state.pending {
            match effect {
                Effect::Write(at, data) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if rng.chance(kept) {
                            apply(&mut bytes, &Effect::Write(at + number * SECTOR, sector.to_vec()));
                        }
                    }
                }
                _ => {
                    lost |= !rng.chance(kept);
                    if !lost {
                        apply(&mut bytes, effect);
                    }
                }
            }
        }
        bytes
    }

    fn change(&self, effect: Effect) -> io::Result<()> {
        self.turn();
        let mut state = self.state.lock().unwrap();
        apply(&mut state.current, &effect);
        state.pending.push(effect);
        Ok(())
    }

    /// Whether the sync that starts now has to fail.
    fn fault(&self) -> Option<SyncFault> {
        let mut state = self.state.lock().unwrap();
        let (left, next): (u32, fn(u32) -> SyncFault) = match state.fault? {
            SyncFault::Fails(left) => (left, SyncFault::Fails),
            SyncFault::Panics(left) => (left, SyncFault::Panics),
        };
        let due = state.fault.take().filter(|_| left == 0);
        state.fault = left.checked_sub(1).map(next);
        due
    }
}

/// A base: bytes that all schedules share and nobody changes.
#[derive(Debug)]
pub struct Sealed {
    /// As [`Medium::turn`].
    turn: Option<shuttle::sync::Mutex<()>>,
    bytes: Arc<[u8]>,
}

impl Sealed {
    pub fn new(bytes: Arc<[u8]>) -> Arc<Self> {
        Arc::new(Self { turn: Some(shuttle::sync::Mutex::new(())), bytes })
    }

    /// The same for one thread alone.
    pub fn quiet(bytes: Arc<[u8]>) -> Arc<Self> {
        Arc::new(Self { turn: None, bytes })
    }
}

impl Storage for Sealed {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        take_turn(self.turn.as_ref());
        copy(buf, &self.bytes, at);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: HostOffset) -> io::Result<()> {
        panic!("a base is written");
    }

    fn punch(&self, _: HostOffset, _: u64) -> io::Result<()> {
        panic!("a base is punched");
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a base changes its length");
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        Ok(Run { len: self.bytes.len() as u64 - at.0, data: true })
    }
}

fn take_turn(turn: Option<&shuttle::sync::Mutex<()>>) {
    if let Some(turn) = turn {
        drop(turn.lock().unwrap());
    }
}

/// Fills `buf` from `at` on, with zeros behind the end.
fn copy(buf: &mut [u8], bytes: &[u8], at: HostOffset) {
    let start = bytes.len().min(at.0 as usize);
    let end = bytes.len().min(start + buf.len());
    buf[..end - start].copy_from_slice(&bytes[start..end]);
    buf[end - start..].fill(0);
}

fn apply(bytes: &mut Vec<u8>, effect: &Effect) {
    match effect {
        Effect::Write(at, data) => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
        Effect::Punch(at, len) => {
            let end = bytes.len().min(at + len);
            if *at < end {
                bytes[*at..end].fill(0);
            }
        }
        Effect::SetLen(len) => bytes.resize(*len, 0),
    }
}

impl Storage for Medium {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.turn();
        copy(buf, &self.state.lock().unwrap().current, at);
        Ok(())
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.change(Effect::Write(at.0 as usize, data.to_vec()))
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.change(Effect::Punch(at.0 as usize, len as usize))
    }

    fn sync(&self) -> io::Result<()> {
        self.turn();
        let fault = self.fault();
        let covered = self.state.lock().unwrap().pending.len();
        self.turn();
        match fault {
            Some(SyncFault::Fails(_)) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(SyncFault::Panics(_)) => std::panic::resume_unwind(Box::new("a sync that panics")),
            None => {}
        }
        let mut state = self.state.lock().unwrap();
        let covered: Vec<Effect> = state.pending.drain(..covered).collect();
        covered.iter().for_each(|effect| apply(&mut state.durable, effect));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap().current.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Effect::SetLen(len as usize))
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        let len = self.len()?;
        let data = at.0 < len;
        Ok(Run { len: if data { len } else { u64::MAX } - at.0, data })
    }
}
