//! libext2fs as safe calls.

use super::cache::Cache;
use super::ffi::{self, Info, Inode, Io, RawFs};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_long, c_void};
use std::io;
use std::rc::Rc;

/// What went wrong, as the parent is told.
#[derive(Debug)]
pub(super) struct Failure {
    /// 0 damage, 1 no space, 2 unsupported, 3 not found, 4 exists, 5 invalid.
    pub(super) class: u8,
    pub(super) text: String,
    /// Whether the next edit is what failed.
    pub(super) of_edit: bool,
}

impl Failure {
    pub(super) fn new(class: u8, text: impl Into<String>) -> Self {
        Self { class, text: text.into(), of_edit: false }
    }
    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self::new(5, text)
    }
    pub(super) fn unsupported(text: impl Into<String>) -> Self {
        Self::new(2, text)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(0, error.to_string())
    }
}

pub(super) type Outcome<T = ()> = Result<T, Failure>;

/// An open filesystem. It is never closed: the child ends instead.
pub(super) struct Fs {
    raw: *mut RawFs,
    pub(super) cache: Rc<RefCell<Cache>>,
    pub(super) info: Info,
}

/// # Safety
/// `host` is the `RefCell` that `Fs::open` gave, and `buf` has room for `len` bytes.
unsafe extern "C" fn read(host: *mut c_void, at: u64, len: u64, buf: *mut u8) -> c_long {
    // SAFETY: as the caller promises; the shim gives the pointer back that it got, and libext2fs its own buffer.
    let (cache, buf) = unsafe {
        let buf = std::slice::from_raw_parts_mut(buf, crate::units::index(len));
        (&*host.cast::<RefCell<Cache>>(), buf)
    };
    code(cache.borrow_mut().read(at, buf))
}

/// # Safety
/// As for `read`, with `len` bytes in `buf`.
unsafe extern "C" fn write(host: *mut c_void, at: u64, len: u64, buf: *const u8) -> c_long {
    // SAFETY: as the caller promises; the shim gives the pointer back that it got, and libext2fs its own buffer.
    let (cache, buf) = unsafe {
        let buf = std::slice::from_raw_parts(buf, crate::units::index(len));
        (&*host.cast::<RefCell<Cache>>(), buf)
    };
    code(cache.borrow_mut().write(at, buf))
}

fn code(result: io::Result<()>) -> c_long {
    match result {
        Ok(()) => 0,
        // A place that is none; the socket itself failing ends the child, for nobody is left to tell.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => libc::EIO.into(),
        Err(_) => std::process::exit(3),
    }
}

/// What a name of a folder stands for, and the folder's block that it was in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) inode: u32,
    pub(super) block: u64,
}

/// # Safety
/// `host` is the map that `Fs::names` gave, and `name` has `len` bytes.
unsafe extern "C" fn emit_name(host: *mut c_void, name: *const u8, len: u32, inode: u32, block: u64) {
    // SAFETY: as the caller promises; the pointer comes back unchanged, during `names`.
    let (names, name) = unsafe {
        (&mut *host.cast::<HashMap<Vec<u8>, Entry>>(), std::slice::from_raw_parts(name, len as usize))
    };
    names.insert(name.to_vec(), Entry { inode, block });
}

type Emitter<'a> = &'a mut dyn FnMut(u64, u64) -> io::Result<()>;

/// # Safety
/// `host` is the `Emitter` that `Fs::scan` gave.
unsafe extern "C" fn emit(host: *mut c_void, block: u64, count: u64) -> c_long {
    // SAFETY: as the caller promises; the pointer comes back unchanged, during `scan`.
    let emitter = unsafe { &mut *host.cast::<Emitter<'_>>() };
    code(emitter(block, count))
}

fn checked(code: c_long) -> Outcome {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the message is a string of the C library or of libext2fs, which stays.
    let text = unsafe { CStr::from_ptr(ffi::cs_message(code)) }.to_string_lossy().into_owned();
    // SAFETY: it takes and gives a number.
    let class = unsafe { ffi::cs_class(code) };
    Err(Failure::new(u8::try_from(class).unwrap_or(0), text))
}

fn text(bytes: &[u8]) -> Outcome<CString> {
    CString::new(bytes).map_err(|_| Failure::invalid("a name has a NUL in it"))
}

impl Fs {
    pub(super) fn open(cache: Cache, writable: bool) -> Result<Self, (Failure, Rc<RefCell<Cache>>)> {
        let cache = Rc::new(RefCell::new(cache));
        let io = Io { host: Rc::as_ptr(&cache).cast_mut().cast(), read, write };
        let (mut raw, mut info) = (std::ptr::null_mut(), Info::default());
        // SAFETY: the callbacks fit their host, which lives as long as `Self`, and so as long as it is used.
        let code = unsafe { ffi::cs_open(&raw const io, i32::from(writable), &raw mut raw) };
        if let Err(failure) = checked(code) {
            return Err((failure, cache));
        }
        // SAFETY: the filesystem is open.
        unsafe { ffi::cs_info(raw, &raw mut info) };
        Ok(Self { raw, cache, info })
    }

    pub(super) fn flush(&self) -> Outcome {
        // SAFETY: the filesystem is open.
        checked(unsafe { ffi::cs_flush(self.raw) })?;
        Ok(self.cache.borrow_mut().flush()?)
    }

    pub(super) fn in_use(&self, inode: u32) -> bool {
        // SAFETY: the filesystem is open, and was opened with its bitmaps.
        unsafe { ffi::cs_in_use(self.raw, inode) != 0 }
    }

    pub(super) fn inode(&self, number: u32) -> Outcome<Inode> {
        let mut inode = Inode::default();
        // SAFETY: the filesystem is open; the number is checked by libext2fs.
        checked(unsafe { ffi::cs_inode_get(self.raw, number, &raw mut inode) })?;
        Ok(inode)
    }

    pub(super) fn set_inode(&self, number: u32, inode: &Inode) -> Outcome {
        // SAFETY: as above.
        checked(unsafe { ffi::cs_inode_put(self.raw, number, inode) })
    }

    pub(super) fn make(&self, mode: u32, device: [u32; 2], generation: u32) -> Outcome<u32> {
        let mut number = 0;
        // SAFETY: as above.
        checked(unsafe { ffi::cs_make(self.raw, mode, &raw const device, generation, &raw mut number) })?;
        Ok(number)
    }

    pub(super) fn set_target(&self, inode: u32, target: &[u8]) -> Outcome {
        let len = u32::try_from(target.len()).unwrap_or(u32::MAX);
        // SAFETY: as above; `target` has `len` bytes, or more than the length that is refused.
        checked(unsafe { ffi::cs_set_target(self.raw, inode, target.as_ptr(), len) })
    }

    pub(super) fn truncate(&self, inode: u32, size: u64) -> Outcome {
        // SAFETY: as above.
        checked(unsafe { ffi::cs_truncate(self.raw, inode, size) })
    }

    /// The blocks of the `count` blocks of a file from `first` on, and whether each is new; holes are filled.
    pub(super) fn map(&self, inode: u32, first: u64, count: u32) -> Outcome<Vec<(u64, bool)>> {
        let (mut blocks, mut fresh) = (vec![0; count as usize], vec![0; count as usize]);
        // SAFETY: as above; both have room for `count` entries.
        checked(unsafe {
            ffi::cs_map(self.raw, inode, first, count, blocks.as_mut_ptr(), fresh.as_mut_ptr())
        })?;
        Ok(blocks.into_iter().zip(fresh.into_iter().map(|fresh| fresh != 0)).collect())
    }

    pub(super) fn free(&self, inode: u32) -> Outcome {
        // SAFETY: as above.
        checked(unsafe { ffi::cs_free(self.raw, inode) })
    }

    /// Every name in a folder but `.` and `..`.
    pub(super) fn names(&self, folder: u32) -> Outcome<HashMap<Vec<u8>, Entry>> {
        let mut names = HashMap::new();
        // SAFETY: as above; `emit_name` gets the names back, and only until this returns.
        checked(unsafe { ffi::cs_names(self.raw, folder, (&raw mut names).cast(), emit_name) })?;
        Ok(names)
    }

    /// Adds a name, in the block `from` of the folder or a later one, which `from` then is.
    pub(super) fn link(&self, folder: u32, name: &[u8], inode: u32, kind: i32, from: &mut u64) -> Outcome {
        let name = text(name)?;
        // SAFETY: as above; the name ends with a NUL.
        checked(unsafe { ffi::cs_link(self.raw, folder, name.as_ptr(), inode, kind, from) })
    }

    pub(super) fn unlink(&self, folder: u32, name: &[u8], entry: Entry) -> Outcome {
        let name = text(name)?;
        // SAFETY: as above.
        checked(unsafe { ffi::cs_unlink(self.raw, folder, name.as_ptr(), entry.inode, entry.block) })
    }

    pub(super) fn set_parent(&self, folder: u32, parent: u32) -> Outcome {
        // SAFETY: as above.
        checked(unsafe { ffi::cs_set_parent(self.raw, folder, parent) })
    }

    pub(super) fn is_empty(&self, folder: u32) -> Outcome<bool> {
        let mut empty = 0;
        // SAFETY: as above.
        checked(unsafe { ffi::cs_is_empty(self.raw, folder, &raw mut empty) })?;
        Ok(empty != 0)
    }

    pub(super) fn set_xattr(&self, inode: u32, name: &[u8], value: &[u8]) -> Outcome {
        let name = text(name)?;
        let len = crate::units::length(value.len());
        // SAFETY: as above; `value` has `len` bytes.
        checked(unsafe { ffi::cs_xattr_set(self.raw, inode, name.as_ptr(), value.as_ptr(), len) })
    }

    pub(super) fn remove_xattr(&self, inode: u32, name: &[u8]) -> Outcome {
        let name = text(name)?;
        // SAFETY: as above.
        checked(unsafe { ffi::cs_xattr_remove(self.raw, inode, name.as_ptr()) })
    }

    /// Calls `emitter` with every run of blocks that `e2fsck` reads.
    pub(super) fn scan(&self, emitter: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> Outcome {
        let mut emitter: Emitter<'_> = emitter;
        // SAFETY: as above; `emit` gets the emitter back, and only until this returns.
        checked(unsafe { ffi::cs_scan(self.raw, (&raw mut emitter).cast(), emit) })
    }
}
