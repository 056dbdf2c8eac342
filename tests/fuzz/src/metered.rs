//! A file in memory that counts what is done with it: a hang is a number, not a time.

use cowshed::storage::{Memory, Run, Storage};
use cowshed::units::HostOffset;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A write further than this behind the end is refused, as by a host file system whose files end somewhere.
const GROWTH: u64 = 64 << 20;

#[derive(Debug)]
pub struct Metered {
    memory: Memory,
    left: AtomicU64,
}

impl Metered {
    /// A file that takes `most` operations.
    pub fn new(bytes: &[u8], most: u64) -> Self {
        Self { memory: Memory::from_bytes(bytes), left: AtomicU64::new(most) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.memory.bytes()
    }

    fn tick(&self) {
        assert!(self.left.fetch_sub(1, Ordering::Relaxed) > 0, "more operations than the file's size allows");
    }
}

impl Storage for Metered {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        self.tick();
        self.memory.read_at(buf, at)
    }
    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        self.tick();
        let end = self.memory.len()?;
        if at.0 > end + GROWTH {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.memory.write_at(data, at)
    }
    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.tick();
        self.memory.punch(at, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.tick();
        self.memory.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.tick();
        self.memory.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.tick();
        self.memory.set_len(len)
    }
    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        self.tick();
        self.memory.run_at(at)
    }
}
