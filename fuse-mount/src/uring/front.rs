//! The view over rings: each request as it lies in an entry's buffers, turned into a call of [`View`] and its answer.

use fuser::Errno;

use super::abi::{IN_HEADER, header, op, setattr};
use super::answers;
use super::fields::{Answer, Fields};
use crate::Source;
use crate::requests::{Change, NAMES_ARE_FIXED, NO_ATTRIBUTES, NO_COMMANDS, UNKNOWN};
use crate::view::View;

/// A request, and its payload, in which the answer goes back.
pub(super) struct Request<'a> {
    /// `struct fuse_uring_req_header`.
    pub(super) header: &'a [u8],
    pub(super) payload: &'a mut [u8],
}

impl Request<'_> {
    fn header(&self) -> Fields<'_> {
        Fields(self.header)
    }

    fn payload_len(&self) -> Result<usize, Errno> {
        let len = usize::try_from(self.header().u32(header::PAYLOAD_LEN)?).map_err(|_| Errno::EIO)?;
        if len <= self.payload.len() { Ok(len) } else { Err(Errno::EIO) }
    }

    /// What the kernel wrote for this request, and not what is left of an earlier one.
    fn arguments(&self) -> Result<Fields<'_>, Errno> {
        let all = usize::try_from(self.header().u32(header::LEN)?).map_err(|_| Errno::EIO)?;
        let len = all.checked_sub(IN_HEADER).and_then(|len| len.checked_sub(self.payload_len().ok()?));
        let room = self.header.get(header::ARGUMENTS..header::ENTRY).ok_or(Errno::EIO)?;
        room.get(..len.ok_or(Errno::EIO)?).map(Fields).ok_or(Errno::EIO)
    }

    /// The name in the payload; none when it is not UTF-8.
    fn name(&self) -> Result<Option<&str>, Errno> {
        let bytes = &self.payload[..self.payload_len()?];
        let end = bytes.iter().position(|&byte| byte == 0).ok_or(Errno::EIO)?;
        Ok(str::from_utf8(&bytes[..end]).ok())
    }
}

/// Answers a request; returns how many bytes of the payload are the answer.
pub(super) fn answer<S: Source>(view: &View<S>, request: Request<'_>) -> Result<usize, Errno> {
    let node = request.header().u64(header::NODE)?;
    let done = |result: Result<(), Errno>| result.map(|()| 0);
    match request.header().u32(header::OPCODE)? {
        op::READ => read(view, request),
        op::WRITE => write(view, request),
        op::LOOKUP => {
            let shown = view.lookup(node, request.name()?)?;
            answers::entry(request.payload, &shown)
        }
        op::GETATTR => answers::attributes(request.payload, &view.getattr(node)?),
        op::SETATTR => {
            let (valid, size) = (request.arguments()?.u32(0)?, request.arguments()?.u64(16)?);
            let size = (valid & setattr::SIZE != 0).then_some(size);
            let shown = view.setattr(node, &Change { access: valid & setattr::ACCESS != 0, size })?;
            answers::attributes(request.payload, &shown)
        }
        op::OPEN => {
            let (tid, uid) = (request.header().u32(header::TID)?, request.header().u32(header::UID)?);
            let (handle, flags) = view.open(node, request.arguments()?.i32(0)?, tid, uid)?;
            answers::opened(request.payload, handle, flags.bits())
        }
        op::FLUSH => done(view.close(request.arguments()?.u64(0)?)),
        op::FSYNC => done(view.sync(request.arguments()?.u64(0)?)),
        op::RELEASE => {
            view.handles.release(request.arguments()?.u64(0)?);
            Ok(0)
        }
        op::FALLOCATE => {
            let given = request.arguments()?;
            done(view.allocate(given.u64(0)?, given.offset(8)?, given.offset(16)?, given.i32(24)?))
        }
        op::LSEEK => {
            let given = request.arguments()?;
            let found = view.seek(given.u64(0)?, given.i64(8)?, given.i32(16)?)?;
            Answer::whole(request.payload, &[&found.to_ne_bytes()])
        }
        op::OPENDIR => answers::opened(request.payload, view.handles.fresh(), 0),
        op::READDIR => list(view, node, request),
        op::RELEASEDIR => {
            view.handles.release_folder(request.arguments()?.u64(0)?);
            Ok(0)
        }
        op::FSYNCDIR => Ok(0),
        op::STATFS => answers::statistics(request.payload),
        op::CREATE
        | op::MKNOD
        | op::MKDIR
        | op::SYMLINK
        | op::LINK
        | op::UNLINK
        | op::RMDIR
        | op::RENAME
        | op::RENAME2 => Err(NAMES_ARE_FIXED),
        op::GETXATTR | op::LISTXATTR | op::SETXATTR | op::REMOVEXATTR => Err(NO_ATTRIBUTES),
        op::IOCTL => Err(NO_COMMANDS),
        _ => Err(UNKNOWN),
    }
}

/// The bytes go from the disk to where the kernel takes them.
fn read<S: Source>(view: &View<S>, request: Request<'_>) -> Result<usize, Errno> {
    let given = request.arguments()?;
    let (handle, at, size) = (given.u64(0)?, given.offset(8)?, given.u32(16)?);
    let size = usize::try_from(size).map_err(|_| Errno::EIO)?;
    view.read(handle, request.payload.get_mut(..size).ok_or(Errno::EIO)?, at)
}

fn write<S: Source>(view: &View<S>, request: Request<'_>) -> Result<usize, Errno> {
    let given = request.arguments()?;
    let (handle, at) = (given.u64(0)?, given.offset(8)?);
    let written = view.write(handle, &request.payload[..request.payload_len()?], at)?;
    Answer::whole(request.payload, &[&written.to_ne_bytes(), &[0; 4]])
}

fn list<S: Source>(view: &View<S>, node: u64, request: Request<'_>) -> Result<usize, Errno> {
    let given = request.arguments()?;
    let (handle, from, size) = (given.u64(0)?, given.u64(8)?, given.u32(16)?);
    let size = usize::try_from(size).map_err(|_| Errno::EIO)?;
    let mut answer = Answer::new(request.payload.get_mut(..size).ok_or(Errno::EIO)?);
    view.list(node, handle, from, |number, next, kind, name| {
        !answers::listed(&mut answer, number, next, kind, name)
    })?;
    Ok(answer.len())
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;
    use crate::names_only::NamesOnly;

    /// A request as the kernel writes it, in a header that an earlier request has left full.
    fn header(opcode: u32, node: u64, arguments: &[u8], payload: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; header::SIZE];
        let mut put = |at: usize, word: &[u8]| bytes[at..at + word.len()].copy_from_slice(word);
        let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes();
        put(header::LEN, &number(IN_HEADER + arguments.len() + payload));
        put(header::OPCODE, &opcode.to_ne_bytes());
        put(header::NODE, &node.to_ne_bytes());
        put(header::ARGUMENTS, arguments);
        put(header::PAYLOAD_LEN, &number(payload));
        bytes
    }

    #[test]
    fn what_the_kernel_did_not_write_is_not_read() {
        let view = NamesOnly::view();
        let mut payload = b"disks\0".to_vec();
        payload.resize(4096, 0xff);
        let ask = |header: &[u8], payload: &mut [u8]| answer(&view, Request { header, payload });
        assert_eq!(ask(&header(op::LOOKUP, 1, &[], 6), &mut payload.clone()).map_err(Errno::code), Ok(128));
        // A name without its end, a payload longer than its room, arguments that are too short or too long.
        for bad in [
            header(op::LOOKUP, 1, &[], 5),
            header(op::LOOKUP, 1, &[], 4097),
            header(op::READ, 2, &[0; 19], 0),
            header(op::READDIR, 2, &[0; 8], 0),
            header(op::OPEN, 2, &[], 0),
            header(op::GETATTR, 1, &[], 0)[..20].to_vec(),
        ] {
            assert_eq!(ask(&bad, &mut payload.clone()).map_err(Errno::code), Err(libc::EIO));
        }
        let mut long = header(op::FSYNC, 2, &[0; 16], 0);
        long[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(ask(&long, &mut payload).map_err(Errno::code), Err(libc::EIO));
    }

    #[test]
    fn a_folder_is_listed_in_as_many_answers_as_it_takes() {
        let view = NamesOnly::view();
        let mut from = 0u64;
        let mut lens = Vec::new();
        loop {
            let mut arguments = [0; 40];
            arguments[8..16].copy_from_slice(&from.to_ne_bytes());
            arguments[16..20].copy_from_slice(&240u32.to_ne_bytes());
            let mut payload = vec![0; 4096];
            let header = header(op::READDIR, 2, &arguments, 0);
            let len = answer(&view, Request { header: &header, payload: &mut payload });
            let len = len.map_err(Errno::code).expect("a listing");
            if len == 0 {
                break;
            }
            lens.push(len);
            // `.`, `..` and the short name fit together; the long one is 200 bytes and its 24.
            from += if from == 0 { 3 } else { 1 };
        }
        assert_eq!(lens, [3 * 32, 224]);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let seed = RandomState::new().hash_one(0);
        println!("seed {seed}");
        let (view, mut state) = (NamesOnly::view(), seed | 1);
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut payload = vec![0; 1 << 16];
        for _ in 0..200_000 {
            let mut header = vec![0; header::SIZE];
            for word in header.chunks_exact_mut(8) {
                let shift = random() % 64;
                word.copy_from_slice(&(random() >> shift).to_ne_bytes());
            }
            let opcode = u32::try_from(random() % 56).unwrap_or(0);
            header[header::OPCODE..][..4].copy_from_slice(&opcode.to_ne_bytes());
            let place = usize::try_from(random()).unwrap_or(0) % (payload.len() - 8);
            payload[place..place + 8].copy_from_slice(&random().to_ne_bytes());
            if let Ok(len) = answer(&view, Request { header: &header, payload: &mut payload }) {
                assert!(len <= payload.len());
            }
        }
    }
}
