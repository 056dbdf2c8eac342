//! Descriptor chains of a split virtqueue (virtio 1.2, 2.7): walked once, without trust.

use super::memory::{Memory, Segment};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of a descriptor.
pub const DESCRIPTOR: u64 = 16;
/// Descriptors that one request may have: more than any queue is long, as QEMU has it.
pub const MOST: usize = 1024;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// A request's buffers: those that the device reads, then those that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    /// What the driver sends.
    pub readable: Vec<Segment>,
    /// What the driver wants filled.
    pub writable: Vec<Segment>,
}

struct Descriptor {
    at: GuestAddress,
    len: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors in guest memory.
#[derive(Clone, Copy, Debug)]
struct Table {
    at: GuestAddress,
    len: u32,
}

impl Table {
    fn get(self, memory: &Memory, number: u16) -> Result<Descriptor, Malformed> {
        if u32::from(number) >= self.len {
            return Err(Malformed("it names a descriptor past the end of the table"));
        }
        let mut bytes = [0; 16];
        let at = self.at.0.checked_add(u64::from(number) * DESCRIPTOR);
        let at = at.ok_or(Malformed("its table lies outside of the guest's memory"))?;
        // One copy: the guest may write to the table meanwhile.
        memory
            .read_slice(&mut bytes, GuestAddress(at))
            .map_err(|_| Malformed("its table lies outside of the guest's memory"))?;
        let (at, rest) = bytes.split_at(8);
        let (len, rest) = rest.split_at(4);
        let (flags, next) = rest.split_at(2);
        Ok(Descriptor {
            at: GuestAddress(number_of(at)),
            len: u32::from_le_bytes([len[0], len[1], len[2], len[3]]),
            flags: u16::from_le_bytes([flags[0], flags[1]]),
            next: u16::from_le_bytes([next[0], next[1]]),
        })
    }
}

fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Chain {
    /// Follows the chain that starts with descriptor `head` of the table at `table`, which has `size` descriptors.
    ///
    /// # Errors
    /// What is wrong with it; the buffers up to there are known then.
    pub fn walk(
        &mut self,
        memory: &Memory,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<(), Malformed> {
        self.readable.clear();
        self.writable.clear();
        let mut table = Table { at: table, len: u32::from(size) };
        let (mut number, mut indirect, mut most) = (head, false, usize::from(size));
        loop {
            let descriptor = table.get(memory, number)?;
            if descriptor.flags & INDIRECT != 0 {
                if indirect || descriptor.flags & NEXT != 0 {
                    return Err(Malformed(
                        "its indirect descriptor is not the only one of its kind and the last",
                    ));
                }
                if descriptor.len == 0 || u64::from(descriptor.len) % DESCRIPTOR != 0 {
                    return Err(Malformed("its indirect table has no whole number of descriptors"));
                }
                table = Table { at: descriptor.at, len: descriptor.len / 16 };
                (number, indirect, most) = (0, true, MOST);
                continue;
            }
            if self.readable.len() + self.writable.len() == most {
                return Err(Malformed("it has too many descriptors, or goes in a circle"));
            }
            self.push(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            number = descriptor.next;
        }
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), Malformed> {
        let segment = Segment { at: descriptor.at, len: descriptor.len };
        if descriptor.flags & WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(Malformed("it has a buffer to read behind one to write"));
        }
        Ok(())
    }
}
