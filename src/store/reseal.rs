//! Accepting checkpoints whose files were copied or put back.

use super::gate::{Trust, Way, check_checkpoint, open_locked};
use super::layout::{CLONE_DISK, checkpoint_disk, checkpoint_file};
use super::{Access, Name, Store, checkpoint, folded, manifest};
use crate::error::{Error, Kind, Result};
use crate::qcow2::{self, Image, OpenOptions};
use crate::storage::{Fingerprint, Folder, HostFile, Storage};
use std::io;
use std::sync::Arc;

/// Why a clone or its checkpoints cannot be opened.
#[derive(Debug)]
pub(crate) struct Refusals {
    /// The clone.
    pub(crate) clone: Option<String>,
    /// Checkpoints, each for another reason than those before.
    pub(crate) checkpoints: Vec<String>,
}

impl Store {
    /// Asks the gate for a clone and for each of its checkpoints, those outside its present chain too. The caller
    /// holds their locks.
    pub(crate) fn refusals(&self, name: &Name) -> Result<Refusals> {
        let way = Way::of(Access::Inspect);
        let clone = self.clone_chain(name, way).err().map(|error| error.to_string());
        let folder = self.clone_folder(name)?;
        let mut checkpoints: Vec<String> = Vec::new();
        for number in checkpoint::finished(&folder).map_err(|error| cannot(name, error))? {
            if let Err(error) = self.checkpoint_chain(name, number, way) {
                let reason = error.to_string();
                if clone.as_ref() != Some(&reason) && !checkpoints.contains(&reason) {
                    checkpoints.push(reason);
                }
            }
        }
        Ok(Refusals { clone, checkpoints })
    }

    /// Accepts the checkpoints of a clone whose files were touched, if their structure is right and they stand on what
    /// their manifests say; returns their numbers. What they hold is not compared with anything: a checkpoint has no
    /// digest.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while somebody has the clone open, `Corrupt` for a damaged one (those before it stay
    /// accepted), `Changed` when the base is another one or a file changes meanwhile, the host's.
    pub fn reseal_checkpoints(&self, name: &Name) -> Result<Vec<u32>> {
        let _lock = self.lock()?;
        self.clone_manifest(name)?;
        let folder = self.clone_folder(name)?;
        let mut locks = Vec::new();
        let top = Way { writable: false, trust: Trust::Nothing, ..Way::of(Access::Write) };
        open_locked(&folder, CLONE_DISK, top, &format!("clone {name}"), &mut locks)?;
        let below = Way { trust: Trust::Nothing, ..Way::of(Access::Read) };
        let mut accepted = Vec::new();
        for number in checkpoint::finished(&folder).map_err(|error| cannot(name, error))? {
            let place = format!("checkpoint {number} of clone {name}");
            let file = open_locked(&folder, &checkpoint_disk(number), below, &place, &mut locks)?;
            if self.reseal_one(&folder, number, &file).map_err(|error| error.at(&place))? {
                accepted.push(number);
            }
        }
        Ok(accepted)
    }

    /// Whether the checkpoint had to be sealed anew.
    fn reseal_one(&self, folder: &Folder, number: u32, file: &HostFile) -> Result<bool> {
        let cannot = |error| Error::io("cannot read it", error);
        let Some(mut manifest) = folded::checkpoint(folder, number)? else {
            return Err(Error::new(Kind::NotFound, "its manifest is missing"));
        };
        let base = self.base_of_clone("its base", &manifest.base)?;
        // Before the reading: a change during or after it is not sealed in.
        let before = Fingerprint::of(file.file()).map_err(cannot)?;
        if manifest.fingerprint.difference(&before).is_none() {
            return Ok(false);
        }
        let storage: Arc<dyn Storage> = Arc::new(file.try_clone().map_err(cannot)?);
        let report = qcow2::check(Arc::clone(&storage))?;
        if let Some(first) = report.errors.first() {
            return Err(Error::corrupt(format!("it is damaged, and not accepted: {first}")));
        }
        let image = Image::open(storage, OpenOptions::default())?;
        check_checkpoint(&image, manifest.parent, (&manifest.base, base.format))?;
        file.sync_all().map_err(cannot)?;
        if before.difference(&Fingerprint::of(file.file()).map_err(cannot)?).is_some() {
            return Err(Error::new(Kind::Changed, "it was changed while it was read; find out by whom"));
        }
        manifest.fingerprint = before.without_ctime();
        folder
            .replace_small(&checkpoint_file(number), &manifest::bytes(&manifest)?)
            .map_err(|error| Error::io("cannot seal it", error))?;
        Ok(true)
    }
}

fn cannot(name: &Name, error: io::Error) -> Error {
    Error::io(format!("cannot list the checkpoints of clone {name}"), error)
}
