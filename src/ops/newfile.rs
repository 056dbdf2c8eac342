//! A file that appears under its name when it is complete, or not at all.

use crate::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempPath};

/// A file in the making, beside the place that it is for.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    /// Its name while it is made, on filesystems where a file cannot do without one.
    temporary: Option<TempPath>,
    out: PathBuf,
    folder: PathBuf,
    replace: bool,
}

impl NewFile {
    /// Begins the file that will be `out`, which must not exist unless it is to be replaced.
    pub(super) fn create(out: &Path, replace: bool) -> Result<Self> {
        let shown = out.display();
        match fs::symlink_metadata(out) {
            Ok(meta) if !meta.is_file() => {
                return Err(Error::invalid(format!("{shown} is not a regular file; name a new file")));
            }
            Ok(_) if !replace => {
                return Err(Error::new(Kind::Exists, format!("{shown} exists; --force replaces it")));
            }
            _ => {}
        }
        if out.file_name().is_none() {
            return Err(Error::invalid(format!("{shown} does not name a file")));
        }
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let cannot = |error| Error::io(format!("cannot make a file in {}", folder.display()), error);
        let (file, temporary) = match nameless(folder) {
            Ok(file) => (file, None),
            Err(error) if has_names_only(&error) => {
                let (file, path) =
                    NamedTempFile::with_prefix_in(".cowshed-", folder).map_err(cannot)?.into_parts();
                (file, Some(path))
            }
            Err(error) => return Err(cannot(error)),
        };
        let (out, folder) = (out.to_owned(), folder.to_owned());
        Ok(Self { file, temporary, out, folder, replace })
    }

    /// The file, to write to.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Gives the file, which is durable, its name.
    pub(super) fn put(self) -> Result<()> {
        let shown = self.out.display().to_string();
        self.named().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::new(Kind::Exists, format!("{shown} exists; --force replaces it"))
            }
            _ => Error::io(format!("cannot make {shown}"), error),
        })
    }

    fn named(self) -> io::Result<()> {
        let Self { file, temporary, out, folder, replace } = self;
        match temporary {
            Some(path) if replace => path.persist(&out)?,
            Some(path) => path.persist_noclobber(&out)?,
            None if replace => {
                // A link never replaces: it gets a name beside the place first, then takes the place.
                let beside = folder.join(format!(".cowshed-{}-{}", std::process::id(), file.as_raw_fd()));
                link(&file, &beside)?;
                TempPath::try_from_path(beside)?.persist(&out)?;
            }
            None => link(&file, &out)?,
        }
        File::open(&folder)?.sync_all()
    }
}

/// A file without a name: when we die, it is gone.
fn nameless(folder: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(folder)
}

fn has_names_only(error: &io::Error) -> bool {
    let known = [Errno::EOPNOTSUPP, Errno::EISDIR, Errno::EINVAL, Errno::ENOENT];
    error.raw_os_error().is_some_and(|raw| known.contains(&Errno::from_raw(raw)))
}

fn link(file: &File, name: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(AT_FDCWD, own.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW)?)
}
