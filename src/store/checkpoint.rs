//! Checkpoints: frozen states of a clone.
//!
//! To freeze, the active file gets the second name `checkpoint-N.qcow2`, its manifest is written, and a new empty
//! layer over it is renamed to `disk.qcow2`: that rename is the commit. Before it the checkpoint is the same file as
//! the active one, which tells everybody that it is unfinished.

use super::create::NewLayer;
use super::gate::{Chain, StandsOn, Way};
use super::layout::{
    CLONE_DISK, CLONE_FILE, DEPTH_MAX, backing_of_clone, checkpoint_disk, checkpoint_file, checkpoint_of_file,
};
use super::manifest::{self, CheckpointManifest, CloneManifest, FORMAT, text_fault};
use super::staging::StoreLock;
use super::{
    Access, BaseId, Checkpoint, Freed, Name, Operation, Restored, Store, Undone, fold, folded, time, usage,
    waiting,
};
use crate::disk::Layer;
use crate::error::{Error, Kind, Result};
use crate::qcow2::BackingName;
use crate::storage::{FileAccess, Fingerprint, Folder, HostFile, Storage, is_open_for_writing};
use std::io;
use std::time::{Duration, Instant};

/// A clone held for a change of its layers: nobody has it open.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: Name,
    pub(super) folder: Folder,
    pub(super) manifest: CloneManifest,
    pub(super) stands_on: StandsOn,
    pub(super) chain: Chain,
    /// The active file, by a descriptor that only reads.
    active: HostFile,
}

/// How long a program that opened the active file may take to find that it is locked.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the former active file is after most changes.
pub(super) const A_CHECKPOINT: &str = "a checkpoint";

impl Store {
    /// Freezes the present state of a clone.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while somebody has it open, `Invalid` when the chain would get too deep, the host's.
    pub fn checkpoint(&self, name: &Name, note: Option<&str>) -> Result<Checkpoint> {
        let note = checked_note(note)?;
        let lock = self.lock()?;
        let held = self.hold(name)?;
        held.refuse_depth(held.chain.layers.len())?;
        let number = held.next_number()?;
        let size = held.size()?;
        let frozen = held.freeze(number, note, None)?;
        held.replace_active(&lock, size, &checkpoint_backing(number), &held.manifest.base)?;
        held.protect(number);
        held.outlast_late_openers(A_CHECKPOINT)?;
        Ok(frozen)
    }

    /// Puts a clone back to a checkpoint. With `keep_current` the state from before becomes a checkpoint.
    ///
    /// # Errors
    /// As [`Store::checkpoint`].
    pub fn restore(&self, name: &Name, number: u32, keep_current: bool) -> Result<Restored> {
        let lock = self.lock()?;
        let held = self.hold(name)?;
        if !held.numbers()?.contains(&number) {
            return Err(no_checkpoint(name, number));
        }
        let note = keep_current.then(|| format!("before the restore of checkpoint {number}"));
        let kept = self.go_back(&held, &lock, number, note)?.0;
        Ok(Restored { kept })
    }

    /// Takes the last operation on a clone back that can be: it is what it was before. The state from before the undo
    /// becomes a checkpoint.
    ///
    /// # Errors
    /// As [`Store::checkpoint`]; `NotFound` when there is nothing to undo.
    pub fn undo(&self, name: &Name) -> Result<Undone> {
        let lock = self.lock()?;
        let held = self.hold(name)?;
        let below: Vec<u32> = self.line_of(&held.folder, held.stands_on.checkpoint())?;
        let last = self.checkpoints(name)?.into_iter().rev().find_map(|checkpoint| {
            let place = below.iter().position(|number| *number == checkpoint.number);
            checkpoint.before.filter(|before| held.can_take_back(*before, place)).zip(Some(checkpoint.number))
        });
        let (operation, restored) = last.ok_or_else(|| {
            let hint = format!("`cowshed checkpoints {name}` shows what it can go back to");
            Error::new(Kind::NotFound, format!("there is nothing to undo of clone {name}; {hint}"))
        })?;
        let note = Some(format!("before the undo of the {operation}"));
        let (kept, base) = self.go_back(&held, &lock, restored, note)?;
        let kept = kept.ok_or_else(|| Error::corrupt("the present state was not kept"))?;
        Ok(Undone { operation, restored, base, kept })
    }

    /// A checkpoint and all that it stands on.
    fn line_of(&self, folder: &Folder, from: Option<u32>) -> Result<Vec<u32>> {
        let (mut line, mut next) = (Vec::new(), from);
        while let Some(number) = next.filter(|number| !line.contains(number)) {
            line.push(number);
            let manifest = folded::checkpoint(folder, number)?;
            next = manifest.and_then(|manifest| manifest.parent);
        }
        Ok(line)
    }

    /// Puts an empty layer over a checkpoint in the active file's place, after the present state became a checkpoint
    /// with `note`, if there is one. Returns that, and the base that the clone stands on now.
    fn go_back(
        &self,
        held: &Held,
        lock: &StoreLock,
        number: u32,
        note: Option<String>,
    ) -> Result<(Option<Checkpoint>, BaseId)> {
        let (target, manifest) = self.checkpoint_chain(&held.name, number, Way::of(Access::Inspect))?;
        held.refuse_depth(target.layers.len())?;
        let size = top_size(&target)?;
        let kept = match note {
            Some(note) => Some(held.freeze(held.next_number()?, Some(note), None)?),
            None => None,
        };
        held.replace_active(lock, size, &checkpoint_backing(number), &manifest.base)?;
        if let Some(kept) = &kept {
            held.protect(kept.number);
        }
        held.outlast_late_openers(A_CHECKPOINT)?;
        Ok((kept, manifest.base))
    }

    /// The checkpoints of a clone, oldest first.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, the host's.
    pub fn checkpoints(&self, name: &Name) -> Result<Vec<Checkpoint>> {
        self.clone_manifest(name)?;
        let folder = self.clone_folder(name)?;
        let mut found = Vec::new();
        for number in finished(&folder).map_err(|error| cannot_change(name, error))? {
            if let Some(manifest) = folded::checkpoint(&folder, number)? {
                found.push(checkpoint_of(number, manifest));
            }
        }
        Ok(found)
    }

    /// The checkpoint that the clone's present state grew from; `None` for the base.
    ///
    /// # Errors
    /// As [`Store::open_clone`] with [`Access::Inspect`].
    pub fn current_checkpoint(&self, name: &Name) -> Result<Option<u32>> {
        Ok(self.clone_chain(name, Way::of(Access::Inspect))?.1.checkpoint())
    }

    /// Removes a checkpoint that nothing stands on.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when the present state or another checkpoint stands on it, the host's.
    pub fn remove_checkpoint(&self, name: &Name, number: u32) -> Result<Freed> {
        let _lock = self.lock_for_removal()?;
        let folder = self.clone_folder(name)?;
        // A fold into this one that was cut short would come to life again without it.
        folded::settle(&folder).map_err(|error| cannot_change(name, error))?;
        let above = self.layers_on(name, number)?;
        if !above.is_empty() {
            return Err(fold::stood_on(name, number, &above));
        }
        let remove = || -> io::Result<u64> {
            let bytes = usage::of_files(&folder, &[checkpoint_file(number), checkpoint_disk(number)])?.freed;
            folded::remove(&folder, number)?;
            Ok(bytes)
        };
        remove().map(|bytes| Freed { bytes }).map_err(|error| cannot_change(name, error))
    }

    /// Opens a clone for a change of its layers: as a writer would, so that nobody else has it, but unwritten.
    pub(super) fn hold(&self, name: &Name) -> Result<Held> {
        // A frozen layer has no log.
        self.settle_log(name)?;
        let way = Way { writable: false, ..Way::of(Access::Write) };
        let (chain, stands_on, manifest) = self.clone_chain(name, way)?;
        let folder = self.clone_folder(name)?;
        super::clean::clone_folder(&folder).map_err(|error| cannot_change(name, error))?;
        if self.written_manifest(name)? != manifest {
            // A rebase was cut short after its rename.
            folder
                .replace_small(CLONE_FILE, &manifest::bytes(&manifest)?)
                .map_err(|error| cannot_change(name, error))?;
        }
        // The same of what was said before it stood on this base.
        waiting::forget_of_other(&folder, &manifest.base).map_err(|error| cannot_change(name, error))?;
        let active = folder.file(CLONE_DISK, FileAccess::Read).map_err(|error| cannot_change(name, error))?;
        let held = Held { name: name.clone(), folder, manifest, stands_on, chain, active };
        held.wait_for_writers().then_some(held).ok_or_else(|| {
            let hint = "is open for writing in a program that takes no locks; stop that first";
            Error::new(Kind::Busy, format!("clone {name} {hint}"))
        })
    }
}

impl StandsOn {
    pub(super) fn checkpoint(self) -> Option<u32> {
        match self {
            Self::Base => None,
            Self::Checkpoint(number) => Some(number),
        }
    }
}

impl Held {
    /// Waits until nobody has the active file open for writing; false when that takes too long.
    ///
    /// Those that take locks have none here, so they are about to find that out, and close it.
    fn wait_for_writers(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        while is_open_for_writing(self.active.file()) == Some(true) {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Who opened the file by its path before another one came to its place must not get the locks on it: they are
    /// held until all who did have gone. `former` says what that file is by now.
    pub(super) fn outlast_late_openers(&self, former: &str) -> Result<()> {
        if self.wait_for_writers() {
            return Ok(());
        }
        let hint = format!(
            "a program has its former file, which is {former} now, open for writing; stop that program"
        );
        Err(Error::new(Kind::Busy, format!("the change of clone {} is done, but {hint}", self.name)))
    }

    /// Whether going back to a checkpoint takes the operation back that made it; `place` counts the checkpoints that the
    /// present state stands on, itself not counted.
    ///
    /// A rebase leaves its checkpoint beside the present state. A resize stands on it, with another size.
    fn can_take_back(&self, operation: Operation, place: Option<usize>) -> bool {
        match (operation, place) {
            (Operation::Rebase, place) => place.is_none(),
            (Operation::Resize, None) => false,
            (Operation::Resize, Some(place)) => {
                let layers = self.chain.layers.get(place..place + 2).unwrap_or_default();
                layers.windows(2).any(|two| two[0].size() != two[1].size())
            }
        }
    }

    fn numbers(&self) -> Result<Vec<u32>> {
        finished(&self.folder).map_err(|error| cannot_change(&self.name, error))
    }

    pub(super) fn next_number(&self) -> Result<u32> {
        // A manifest whose file is missing keeps its number: the file may be on its way back from a backup.
        let names = self.folder.names().map_err(|error| cannot_change(&self.name, error))?;
        let manifests = names.iter().filter_map(|name| checkpoint_of_file(name));
        let last = self.numbers()?.into_iter().chain(manifests).max().unwrap_or(0);
        last.checked_add(1)
            .ok_or_else(|| Error::invalid(format!("clone {} has no checkpoint number left", self.name)))
    }

    pub(super) fn size(&self) -> Result<u64> {
        top_size(&self.chain)
    }

    /// One more layer comes on top of `depth` layers.
    pub(super) fn refuse_depth(&self, depth: usize) -> Result<()> {
        if depth < DEPTH_MAX {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "clone {} has {depth} layers, no more than {DEPTH_MAX} are opened; restore an earlier checkpoint or export it",
            self.name
        )))
    }

    /// Gives the active file its second name, and the manifest that makes it a checkpoint once the active file is
    /// another one.
    pub(super) fn freeze(
        &self,
        number: u32,
        note: Option<String>,
        before: Option<Operation>,
    ) -> Result<Checkpoint> {
        let cannot = |error| cannot_change(&self.name, error);
        let disk = &self.active;
        // What the guest flushed is durable; what it did not flush is frozen too, and must not be lost later.
        disk.sync_all().map_err(cannot)?;
        let manifest = CheckpointManifest {
            manifest: FORMAT,
            parent: self.stands_on.checkpoint(),
            base: self.manifest.base.clone(),
            note,
            before,
            created: time::now(),
            fingerprint: Fingerprint::of(disk.file()).map_err(cannot)?.without_ctime(),
            folding: None,
        };
        let bytes = manifest::bytes(&manifest)?;
        let write = || -> io::Result<()> {
            self.folder.link(CLONE_DISK, checkpoint_disk(number))?;
            // Never a manifest without its file: that would keep the number for good.
            self.folder.sync()?;
            // This syncs the folder: both names are durable before the rename that makes them count.
            self.folder.replace_small(&checkpoint_file(number), &bytes)
        };
        if let Err(error) = write() {
            // What stays is unfinished, and debris.
            self.tidy();
            return Err(cannot(error));
        }
        Ok(checkpoint_of(number, manifest))
    }

    /// Puts an empty layer over `backing` in the active file's place.
    fn replace_active(
        &self,
        lock: &StoreLock,
        size: u64,
        backing: &BackingName,
        base: &BaseId,
    ) -> Result<()> {
        let layer =
            NewLayer { size, compat: self.manifest.compat, backing: backing.clone(), base: base.clone() };
        let put = || -> Result<()> {
            let staging = lock.stage()?;
            let file = layer.create(staging.folder(), CLONE_DISK)?;
            file.sync().map_err(|error| cannot_change(&self.name, error))?;
            self.put_active(staging.folder(), base, size)
        };
        put().inspect_err(|_| self.tidy())
    }

    /// Puts the disk that is staged in `staged`, durable, in the active file's place: the commit. It stands on `base`.
    pub(super) fn put_active(&self, staged: &Folder, base: &BaseId, size: u64) -> Result<()> {
        let cannot = |error| cannot_change(&self.name, error);
        let other = *base != self.manifest.base || size != self.manifest.size;
        if other {
            // From here on the header of the disk decides which base it is, and how large.
            let between = CloneManifest { next: Some(base.clone()), ..self.manifest.clone() };
            self.folder.replace_small(CLONE_FILE, &manifest::bytes(&between)?).map_err(cannot)?;
        }
        staged.move_over(CLONE_DISK, &self.folder, CLONE_DISK).map_err(cannot)?;
        self.folder.sync().map_err(cannot)?;
        if other {
            let after = CloneManifest { base: base.clone(), next: None, size, ..self.manifest.clone() };
            // The change is made; the next one of this clone tidies up what fails here.
            self.folder.replace_small(CLONE_FILE, &manifest::bytes(&after)?).map_err(|error| {
                let what = format!("clone {} is on {base} now, with {size} bytes", self.name);
                Error::io(format!("{what}, but its manifest is not written"), error)
            })?;
            // What waited does not count any more; what cannot be removed now goes with the next change.
            let _ = waiting::forget_of_other(&self.folder, base);
        }
        Ok(())
    }

    /// Removes what a change that failed left.
    pub(super) fn tidy(&self) {
        let _ = super::clean::clone_folder(&self.folder);
    }

    /// Makes a checkpoint's file read-only, and still nobody else's. Its fingerprint guards it; this keeps accidents away.
    pub(super) fn protect(&self, number: u32) {
        if let Ok(file) = self.folder.file(checkpoint_disk(number), FileAccess::Read) {
            let _ = file.set_mode(0o400);
        }
    }
}

/// Numbers of the checkpoints in a clone's folder, in order: with manifest, another file than the active one, and not folded
/// into another layer.
pub(super) fn finished(folder: &Folder) -> io::Result<Vec<u32>> {
    let active = folder.stat(CLONE_DISK)?.st_ino;
    let mut numbers = Vec::new();
    for number in folder.names()?.iter().filter_map(|name| checkpoint_of_file(name)) {
        match folder.stat(checkpoint_disk(number)) {
            Ok(stat) if stat.st_ino != active && !folded::is_gone(folder, number) => numbers.push(number),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The base as the backing file of a clone's first layer, or of a throw-away layer over the base.
pub(super) fn base_backing(name: &Name, version: u32, format: super::DiskFormat) -> BackingName {
    BackingName {
        file: backing_of_clone(name.as_str(), version, format),
        format: Some(format.as_str().to_owned()),
    }
}

fn checkpoint_of(number: u32, manifest: CheckpointManifest) -> Checkpoint {
    let CheckpointManifest { parent, base, note, before, created, .. } = manifest;
    Checkpoint { number, parent, base, note, before, created }
}

pub(super) fn checkpoint_backing(number: u32) -> BackingName {
    BackingName { file: checkpoint_disk(number), format: Some("qcow2".to_owned()) }
}

pub(super) fn top_size(chain: &Chain) -> Result<u64> {
    match chain.layers.first() {
        Some(Layer::Qcow2(image)) => Ok(image.virtual_size()),
        _ => Err(Error::corrupt("the active layer is not qcow2")),
    }
}

fn checked_note(note: Option<&str>) -> Result<Option<String>> {
    let note = note.map(str::to_owned);
    match text_fault(&note) {
        Some(fault) => Err(Error::invalid(format!("the note cannot be kept: {fault}"))),
        None => Ok(note),
    }
}

pub(super) fn no_checkpoint(name: &Name, number: u32) -> Error {
    Error::new(
        Kind::NotFound,
        format!("clone {name} has no checkpoint {number}; `cowshed checkpoints {name}` shows what there is"),
    )
}

pub(super) fn cannot_change(name: &Name, error: io::Error) -> Error {
    Error::io(format!("cannot change clone {name}"), error)
}
