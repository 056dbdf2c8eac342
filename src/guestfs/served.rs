//! A part of a disk as a file without a name, for the programs that know the filesystem in it.
//!
//! It is the only file of a mount that is taken out of its folder as soon as it is there: nobody else finds it, and it
//! ends with this process, however that ends.
//!
//! This process holds the mount by its root and never uses it: a process that is killed while it waits for its own answer
//! would wait for ever. Programs that it starts have no other descriptor of it, and find the file from there.

use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{GuestOffset, index, length};
use fuse_mount::{Device, Extent, Mount, Opener, Options, Source, Stat, Transport};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

const FOLDER: &str = "disk";
const FILE: &str = "part";
/// The file, seen from the mount's root.
pub(super) const PATH: &str = "disk/part";

/// A disk that several threads share.
pub(crate) type SharedDisk = Arc<dyn AsRef<Disk> + Send + Sync>;

/// `len` bytes of a disk from `start` on.
struct Part {
    disk: SharedDisk,
    start: u64,
    len: u64,
    /// The length that the file has now, which a program may have cut.
    shown: AtomicU64,
    /// The first failure of the disk: the program only gets a number.
    failure: Mutex<Option<Error>>,
}

/// The part as the one file of a mount.
struct OnePart(Arc<Part>);

/// The part as an open file.
struct OpenPart(Arc<Part>);

impl Part {
    fn with<T>(&self, request: impl FnOnce(&Disk) -> Result<T>) -> io::Result<T> {
        request((*self.disk).as_ref()).map_err(|error| {
            let errno = error.errno();
            self.failure.lock().get_or_insert(error);
            io::Error::from_raw_os_error(errno)
        })
    }

    /// Place on the disk and length of what lies inside of `len` bytes at `at`.
    fn inside(&self, at: u64, len: u64) -> (GuestOffset, u64) {
        let shown = self.shown.load(Ordering::Acquire);
        let at = at.min(shown);
        (GuestOffset(self.start + at), len.min(shown - at))
    }

    fn stat(&self) -> Stat {
        let size = self.shown.load(Ordering::Acquire);
        Stat {
            size,
            blocks: size.div_ceil(512),
            modified: SystemTime::UNIX_EPOCH,
            writable: true,
            immutable: false,
        }
    }
}

impl Source for OnePart {
    fn folders(&self) -> Vec<String> {
        vec![FOLDER.to_owned()]
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(vec![FILE.to_owned()])
    }

    fn stat(&self, folder: &str, name: &str) -> io::Result<Stat> {
        if (folder, name) == (FOLDER, FILE) { Ok(self.0.stat()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn open(&self, folder: &str, name: &str, _: Opener) -> io::Result<Arc<dyn Device>> {
        self.stat(folder, name)?;
        Ok(Arc::new(OpenPart(Arc::clone(&self.0))))
    }
}

impl Device for OpenPart {
    fn stat(&self) -> io::Result<Stat> {
        Ok(self.0.stat())
    }

    fn read(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let (at, len) = self.0.inside(at, length(buf.len()));
        let buf = buf.get_mut(..index(len)).unwrap_or_default();
        if !buf.is_empty() {
            self.0.with(|disk| disk.read(buf, at))?;
        }
        Ok(buf.len())
    }

    fn write(&self, data: &[u8], at: u64) -> io::Result<usize> {
        let (at, len) = self.0.inside(at, length(data.len()));
        let data = data.get(..index(len)).unwrap_or_default();
        if data.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.0.with(|disk| disk.write(data, at))?;
        Ok(data.len())
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        let (at, len) = self.0.inside(at, len);
        if len == 0 { Ok(()) } else { self.0.with(|disk| disk.discard(at, len)) }
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.discard(at, len)
    }

    fn flush(&self) -> io::Result<()> {
        // The layer is made durable as a whole before it counts.
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.0.len {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.0.shown.store(len, Ordering::Release);
        Ok(())
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let (place, left) = self.0.inside(at, u64::MAX);
        if left == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        let extent = self.0.with(|disk| disk.extent(place))?;
        Ok(Extent { len: extent.len.min(left), data: extent.data })
    }
}

/// A part of a disk that can be opened as a file as long as this lives.
pub(super) struct Served {
    /// The root of the mount, by a descriptor that only says where it is.
    pub(super) root: File,
    part: Arc<Part>,
    // After the root: it ends when nobody has anything of it open any more.
    mount: Mount,
}

impl Served {
    /// Serves `len` bytes of `disk` from `start` on, which lie inside of it. `folder` is empty, and is so again when this
    /// returns.
    ///
    /// # Errors
    /// `NotFound` without `/dev/fuse`; what mounting gives.
    pub(super) fn new(disk: SharedDisk, (start, len): (u64, u64), folder: &Path) -> Result<Self> {
        let part = Arc::new(Part { disk, start, len, shown: AtomicU64::new(len), failure: Mutex::new(None) });
        // Two threads are all it needs; over io_uring it would be some for each processor.
        let options = Options { threads: 2, transport: Transport::Dev, ..Options::default() };
        let mount = fuse_mount::mount(OnePart(Arc::clone(&part)), folder, options).map_err(cannot_mount)?;
        let root =
            File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(mount.dir());
        // First of all it loses its name, whether its root could be opened or not.
        mount.hide().map_err(cannot_mount)?;
        let root = root.map_err(|error| Error::io("cannot open the filesystem for its programs", error))?;
        Ok(Self { root, part, mount })
    }

    /// The first failure of the disk, if there was one.
    pub(super) fn take_failure(&self) -> Option<Error> {
        self.part.failure.lock().take()
    }

    /// Ends the serving; nobody uses the disk through it any more when this returns.
    ///
    /// # Errors
    /// When the kernel's connection failed.
    pub(super) fn end(self) -> Result<()> {
        let Self { root, part, mount } = self;
        drop((root, part));
        mount.wait().map_err(cannot_mount)
    }
}

fn cannot_mount(error: fuse_mount::Error) -> Error {
    let sentence = error.to_string();
    let kind = match &error {
        fuse_mount::Error::FuseDevice { .. } | fuse_mount::Error::NoHelper { .. } => Kind::NotFound,
        _ => Kind::Io,
    };
    Error::new(kind, format!("the filesystem cannot be shown to its programs: {sentence}"))
}
