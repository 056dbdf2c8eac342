//! Disks in memory, with a probe that sees, delays and fails what is done to them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use fuse_mount::{Device, Extent, Opener, Options, Source, Stat, Transport};

/// Unit of allocation: extents are multiples of it.
pub const CHUNK: u64 = 64 << 10;

/// The default, over the transport that COWSHED_TRANSPORT names, as the command line takes it.
pub fn options() -> Options {
    let transport = match std::env::var("COWSHED_TRANSPORT").as_deref() {
        Err(_) | Ok("auto") => Transport::Auto,
        Ok("dev") => Transport::Dev,
        Ok("uring") => Transport::Uring,
        Ok(other) => panic!("COWSHED_TRANSPORT={other}"),
    };
    Options { transport, ..Options::default() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Stat,
    Read { at: u64, len: usize },
    Write { at: u64, len: usize },
    Discard { at: u64, len: u64 },
    Zero { at: u64, len: u64 },
    Extent,
    Flush,
    Close,
    Drop,
}

pub type Probe = Arc<dyn Fn(Op) -> io::Result<()> + Send + Sync>;

#[derive(Default)]
struct Chunk {
    /// Empty for a hole, else `CHUNK` bytes.
    bytes: Vec<u8>,
}

/// One disk, which several files may show.
pub struct Disk {
    chunks: Vec<RwLock<Chunk>>,
    size: u64,
    immutable: bool,
    writer: Mutex<(u32, usize)>,
    changes: AtomicU64,
    probe: RwLock<Option<Probe>>,
}

impl Disk {
    pub fn new(size: u64, immutable: bool) -> Arc<Self> {
        Arc::new(Disk {
            chunks: (0..size.div_ceil(CHUNK)).map(|_| RwLock::default()).collect(),
            size,
            immutable,
            writer: Mutex::default(),
            changes: AtomicU64::new(0),
            probe: RwLock::default(),
        })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Calls `probe` before each operation; its error fails the operation.
    pub fn probe(&self, probe: impl Fn(Op) -> io::Result<()> + Send + Sync + 'static) {
        *self.probe.write().unwrap() = Some(Arc::new(probe));
    }

    /// Everything that is done from now on.
    pub fn log(&self) -> Arc<Mutex<Vec<Op>>> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        self.probe(move |op| {
            sink.lock().unwrap().push(op);
            Ok(())
        });
        log
    }

    fn tell(&self, op: Op) -> io::Result<()> {
        let probe = self.probe.read().unwrap().clone();
        probe.map_or(Ok(()), |probe| probe(op))
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.each(at, len as u64, |chunk, within, range| {
            let chunk = self.chunks[chunk].read().unwrap();
            if !chunk.bytes.is_empty() {
                bytes[range.clone()].copy_from_slice(&chunk.bytes[within..within + range.len()]);
            }
        });
        bytes
    }

    pub fn put(&self, at: u64, data: &[u8]) {
        self.each(at, data.len() as u64, |chunk, within, range| {
            let mut chunk = self.chunks[chunk].write().unwrap();
            chunk.bytes.resize(CHUNK as usize, 0);
            chunk.bytes[within..within + range.len()].copy_from_slice(&data[range]);
        });
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    fn clear(&self, at: u64, len: u64, give_back: bool) {
        self.each(at, len, |index, within, range| {
            let mut chunk = self.chunks[index].write().unwrap();
            let whole = range.len() as u64 == CHUNK.min(self.size - index as u64 * CHUNK);
            if whole && give_back {
                chunk.bytes = Vec::new();
            } else if !chunk.bytes.is_empty() {
                chunk.bytes[within..within + range.len()].fill(0);
            }
        });
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Splits a range at chunk borders: chunk, offset in it, range in the caller's buffer.
    fn each(&self, at: u64, len: u64, mut f: impl FnMut(usize, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let (chunk, within) = ((at + done) / CHUNK, (at + done) % CHUNK);
            let n = (CHUNK - within).min(len - done);
            f(chunk as usize, within as usize, done as usize..(done + n) as usize);
            done += n;
        }
    }
}

/// A file over a disk: the whole of it, or a part.
#[derive(Clone)]
pub struct File {
    pub disk: Arc<Disk>,
    pub start: u64,
    pub len: u64,
    /// Stands for this very file, as an inode number of the host would.
    pub identity: u64,
}

impl File {
    fn stat(&self) -> Stat {
        let present = self.disk.chunks.iter().filter(|chunk| !chunk.read().unwrap().bytes.is_empty());
        Stat {
            size: self.len,
            blocks: present.count() as u64 * CHUNK / 512,
            modified: SystemTime::UNIX_EPOCH
                + Duration::from_secs(1_000_000 + self.disk.changes.load(Ordering::SeqCst)),
            writable: !self.disk.immutable,
            immutable: self.disk.immutable,
        }
    }
}

/// The source: files may come and go at any time.
#[derive(Clone, Default)]
pub struct Memory {
    pub files: Arc<RwLock<BTreeMap<(String, String), File>>>,
    pub openers: Arc<Mutex<Vec<Opener>>>,
    made: Arc<AtomicU32>,
}

impl Memory {
    /// Adds a disk shown whole, e.g. `clones/a.raw`; those in `bases` never change.
    pub fn add(&self, path: &str, size: u64) -> Arc<Disk> {
        let disk = Disk::new(size, path.starts_with("bases/"));
        self.show(path, &disk, 0, size);
        disk
    }

    /// Shows a part of a disk as a file.
    pub fn show(&self, path: &str, disk: &Arc<Disk>, start: u64, len: u64) {
        let (folder, name) = path.split_once('/').unwrap();
        let identity = u64::from(self.made.fetch_add(1, Ordering::SeqCst));
        let file = File { disk: disk.clone(), start, len, identity };
        self.files.write().unwrap().insert((folder.to_owned(), name.to_owned()), file);
    }

    pub fn remove(&self, path: &str) {
        let (folder, name) = path.split_once('/').unwrap();
        self.files.write().unwrap().remove(&(folder.to_owned(), name.to_owned())).unwrap();
    }

    fn find(&self, folder: &str, name: &str) -> io::Result<File> {
        let files = self.files.read().unwrap();
        files.get(&(folder.to_owned(), name.to_owned())).cloned().ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Source for Memory {
    fn folders(&self) -> Vec<String> {
        vec!["bases".to_owned(), "clones".to_owned()]
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let files = self.files.read().unwrap();
        Ok(files.keys().filter(|key| key.0 == folder).map(|key| key.1.clone()).collect())
    }

    fn stat(&self, folder: &str, name: &str) -> io::Result<Stat> {
        Ok(self.find(folder, name)?.stat())
    }

    fn identity(&self, folder: &str, name: &str) -> io::Result<u64> {
        Ok(self.find(folder, name)?.identity)
    }

    /// One process at a time may write a disk, through any of its files.
    fn open(&self, folder: &str, name: &str, opener: Opener) -> io::Result<Arc<dyn Device>> {
        self.openers.lock().unwrap().push(opener);
        let file = self.find(folder, name)?;
        if opener.write {
            let mut writer = file.disk.writer.lock().unwrap();
            if writer.1 > 0 && writer.0 != opener.pid {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            *writer = (opener.pid, writer.1 + 1);
        }
        Ok(Arc::new(Open { file, write: opener.write }))
    }
}

struct Open {
    file: File,
    write: bool,
}

impl Open {
    fn disk(&self) -> &Disk {
        &self.file.disk
    }
}

impl Device for Open {
    fn stat(&self) -> io::Result<Stat> {
        self.disk().tell(Op::Stat)?;
        Ok(self.file.stat())
    }

    fn read(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        assert_eq!(buf.as_ptr().addr() % 4096, 0, "read buffers are aligned");
        self.disk().tell(Op::Read { at, len: buf.len() })?;
        let len = buf.len().min(self.file.len.saturating_sub(at) as usize);
        buf[..len].copy_from_slice(&self.disk().get(self.file.start + at, len));
        Ok(len)
    }

    fn write(&self, data: &[u8], at: u64) -> io::Result<usize> {
        assert!(at + data.len() as u64 <= self.file.len, "writes stay inside the disk");
        self.disk().tell(Op::Write { at, len: data.len() })?;
        self.disk().put(self.file.start + at, data);
        Ok(data.len())
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.disk().tell(Op::Discard { at, len })?;
        self.disk().clear(self.file.start + at, len, true);
        Ok(())
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.disk().tell(Op::Zero { at, len })?;
        self.disk().clear(self.file.start + at, len, false);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.disk().tell(Op::Flush)
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        self.disk().tell(Op::Extent)?;
        let at = self.file.start + at;
        let data = !self.disk().chunks[(at / CHUNK) as usize].read().unwrap().bytes.is_empty();
        Ok(Extent { len: CHUNK - at % CHUNK, data })
    }

    fn close(&self) -> io::Result<()> {
        self.disk().tell(Op::Close)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let told = self.disk().tell(Op::Drop);
        if self.write {
            self.disk().writer.lock().unwrap().1 -= 1;
        }
        told.expect("a probe that fails a drop panics");
    }
}
