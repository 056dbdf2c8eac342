//! The names of the folders that are changed, so that none is searched through for each of them.

use super::fs::{Entry, Failure, Fs, Outcome};
use std::collections::HashMap;

/// Names kept at most; then those of all folders are read again when they are needed.
const MOST: usize = 1 << 20;

/// One folder.
struct Folder {
    entries: HashMap<Vec<u8>, Entry>,
    /// The block of the last name that was added.
    last: u64,
}

/// Folders by inode.
#[derive(Default)]
pub(super) struct Names {
    folders: HashMap<u32, Folder>,
    count: usize,
}

impl Names {
    fn folder(&mut self, fs: &Fs, number: u32) -> Outcome<&mut Folder> {
        if !self.folders.contains_key(&number) {
            if self.count > MOST {
                *self = Self::default();
            }
            let entries = fs.names(number)?;
            self.count += entries.len() + 1;
            self.folders.insert(number, Folder { entries, last: 0 });
        }
        self.folders.get_mut(&number).ok_or_else(|| Failure::invalid("a folder is gone"))
    }

    /// What `name` stands for.
    pub(super) fn find(&mut self, fs: &Fs, folder: u32, name: &[u8]) -> Outcome<Option<u32>> {
        Ok(self.folder(fs, folder)?.entries.get(name).map(|entry| entry.inode))
    }

    /// Adds a name that is free.
    pub(super) fn add(&mut self, fs: &Fs, folder: u32, name: &[u8], inode: u32, kind: i32) -> Outcome {
        let of = self.folder(fs, folder)?;
        fs.link(folder, name, inode, kind, &mut of.last)?;
        of.entries.insert(name.to_vec(), Entry { inode, block: of.last });
        self.count += 1;
        Ok(())
    }

    /// Takes a name away that is there.
    pub(super) fn remove(&mut self, fs: &Fs, folder: u32, name: &[u8]) -> Outcome {
        let entry = self.folder(fs, folder)?.entries.remove(name);
        let entry = entry.ok_or_else(|| Failure::new(3, "there is no such name"))?;
        fs.unlink(folder, name, entry)
    }
}
