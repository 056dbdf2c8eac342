//! Two versions of a base as merges see them: opened and read once for all clones that move from one to the other.

use super::mounts::Mounts;
use crate::error::{Error, Kind, Result};
use crate::guestfs::partitions::{Partition, partitions, places};
use crate::ops::merge::Pairs;
use crate::ops::merge::later::{Owners, Touched};
use crate::ops::merge::renumber::Ids;
use crate::ops::merge::tree::Tree;
use crate::ops::merge::volumes::{Compared, On, Place, Volume};
use crate::store::{BaseId, BaseRef, OpenDisk, Store};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

/// Two versions of a base. Both are held as a reader holds them: nobody removes them meanwhile.
pub(super) struct Pair {
    pub(super) onto: BaseId,
    pub(super) old: Arc<OpenDisk>,
    pub(super) new: Arc<OpenDisk>,
    /// Layers at the bottom of both that are the same files.
    pub(super) shared: usize,
    /// The partitions of both.
    layout: Vec<Partition>,
    /// Places that a filesystem may be in, in the order of the disk, with the one that both have there.
    pub(super) places: Vec<(Place, Option<Both>)>,
    /// Where their guest mounts them.
    pub(super) mounts: Mounts,
}

/// One filesystem in both versions.
pub(super) struct Both {
    pub(super) old: Volume<'static>,
    pub(super) new: Volume<'static>,
    /// Their files, and which are the same ones.
    pub(super) trees: [Tree; 2],
    /// What later states of the old one are read by, and what of the new one may be another.
    pub(super) owners: Owners,
    pub(super) touched: Touched,
    pub(super) pairs: Pairs,
    /// What merges find out about them.
    pub(super) compared: Compared,
    /// The numbers of users and groups that files of either name; found when they are asked for.
    ids: OnceLock<[Ids; 2]>,
}

/// The pair that was needed last, or why there is none. One that is not needed any more takes no memory: clones of one version
/// come one after the other.
#[derive(Default)]
pub(super) struct Bases {
    last: Mutex<Option<Last>>,
}

struct Last {
    from: BaseId,
    onto: BaseId,
    /// Of an error its kind and its sentence.
    pair: Result<Arc<Pair>, (Kind, String)>,
}

impl Bases {
    /// The two versions. Who needs them while somebody reads them waits for that. Those that cannot be merged are not read
    /// again for each clone.
    ///
    /// # Errors
    /// As [`Pair::open`].
    pub(super) fn pair(&self, store: &Store, from: &BaseId, onto: &BaseId) -> Result<Arc<Pair>> {
        let mut last = self.last.lock();
        let known = last.as_ref().filter(|last| last.from == *from && last.onto == *onto);
        let again = |(kind, message): &(Kind, String)| Error::new(*kind, message);
        if let Some(Last { pair, .. }) = known {
            return pair.as_ref().map(Arc::clone).map_err(again);
        }
        // Its memory is free before that of the next one is taken.
        *last = None;
        let pair = Pair::open(store, from, onto).map(Arc::new);
        let kept = match &pair {
            Ok(pair) => Ok(Arc::clone(pair)),
            // What the disks are stays so for the run; what the host or somebody else does may pass.
            Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::Corrupt | Kind::Invalid) => {
                Err((error.kind(), error.to_string()))
            }
            Err(_) => return pair,
        };
        *last = Some(Last { from: from.clone(), onto: onto.clone(), pair: kept });
        pair
    }
}

impl Pair {
    /// Opens two versions of a base, and reads the trees of the filesystems that both have.
    ///
    /// # Errors
    /// `Changed` when one is not the version that is meant; `Unsupported` when no files of them can be merged, with the
    /// reason; `Corrupt` for a damaged filesystem; whatever reading gives.
    fn open(store: &Store, from: &BaseId, onto: &BaseId) -> Result<Self> {
        let (old, new) = (version(store, from)?, version(store, onto)?);
        let layout = partitions(&old.disk)?;
        if partitions(&new.disk)? != layout {
            return Err(another_layout());
        }
        let shorter = if new.disk.size() < old.disk.size() { &new } else { &old };
        let mut found = places(&shorter.disk)?;
        found.sort_by_key(|place| place.start.0);
        let shared = old.shared_with(new.files());
        let both = |place: Place| Ok((place, Both::open([&old, &new], shared, &place)?));
        let mut places = found.into_iter().map(both).collect::<Result<Vec<_>>>()?;
        let mounts = Mounts::find(&old.disk, &places)?;
        for (place, both) in &mut places {
            if let (Some(both), Some(at)) = (both, mounts.of(place)) {
                both.trees.iter_mut().for_each(|tree| tree.above = at.to_vec());
            }
        }
        let onto = onto.clone();
        Ok(Self { onto, old, new, shared, layout, places, mounts })
    }

    /// Refuses a disk of a clone that is laid out in another way than the one that it was made from.
    pub(super) fn refuse_layout(&self, layout: &[Partition], size: u64) -> Result<()> {
        match layout == self.layout && size == self.old.disk.size() {
            true => Ok(()),
            false => Err(another_layout()),
        }
    }
}

fn another_layout() -> Error {
    Error::unsupported(
        "its partitions, or the new base's, are not those that it was made with: files cannot be merged across \
         another layout",
    )
}

/// The version `id`, and no other that has come in its place.
fn version(store: &Store, id: &BaseId) -> Result<Arc<OpenDisk>> {
    let exact = BaseRef::exact(id.name.clone(), id.version);
    let open = store.open_base(&exact)?;
    // Nobody exchanges it now: it is open.
    match store.base(&exact)?.id() == *id {
        true => Ok(Arc::new(open)),
        false => Err(Error::new(
            Kind::Changed,
            format!("base {id} is another one by now (another digest); run this again"),
        )),
    }
}

impl Both {
    /// The filesystem in a place, if both versions have one there.
    fn open([old, new]: [&Arc<OpenDisk>; 2], shared: usize, place: &Place) -> Result<Option<Self>> {
        let (was, is) = ("the old base", "the new base");
        let found = (volume(Arc::clone(old), place, was)?, volume(Arc::clone(new), place, is)?);
        let (Some(old), Some(new)) = found else { return Ok(None) };
        refuse_other(&old, &new, place)?;
        let at = |error: Error, of: &str| error.at(format!("{}, {of}", named(place.number)));
        let (earlier, owners) = old.tree_with_owners().map_err(|error| at(error, was))?;
        let later = new.tree_after(&old, (&earlier, &owners), shared).map_err(|error| at(error, is));
        let (later, touched) = later?;
        let trees = [earlier, later];
        let pairs = Pairs::of_bases(&trees[0], &trees[1], true);
        let (compared, ids) = (Compared::default(), OnceLock::new());
        Ok(Some(Self { old, new, trees, owners, touched, pairs, compared, ids }))
    }

    /// What files of the old base and of the new one name.
    pub(super) fn ids(&self) -> &[Ids; 2] {
        let of = |tree| {
            let mut ids = Ids::default();
            ids.add(tree);
            ids
        };
        self.ids.get_or_init(|| self.trees.each_ref().map(of))
    }

    /// The files of a clone of the old base, with which it has `shared` layers in common.
    pub(super) fn tree_of(
        &self,
        clone: &Volume<'_>,
        shared: usize,
        place: &Place,
    ) -> Result<(Tree, Touched)> {
        let old = (&self.trees[0], &self.owners);
        let found = clone.tree_after(&self.old, old, shared);
        let (mut tree, touched) =
            found.map_err(|error| error.at(format!("{}, the clone", named(place.number))))?;
        tree.above.clone_from(&self.trees[0].above);
        Ok((tree, touched))
    }

    /// Refuses a clone that has another filesystem there.
    pub(super) fn refuse_other(&self, place: &Place, clone: &Volume<'_>) -> Result<()> {
        refuse_other(&self.old, clone, place)
    }
}

fn refuse_other(old: &Volume<'_>, other: &Volume<'_>, place: &Place) -> Result<()> {
    let uuid = |volume: &Volume<'_>| volume.filesystem.superblock().uuid;
    if uuid(old) == uuid(other) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "{}: the new base has another filesystem there (another UUID), not a later state of the same one",
        named(place.number)
    )))
}

/// The ext filesystem in a place, if there is one.
pub(super) fn volume<'a>(disk: impl Into<On<'a>>, place: &Place, of: &str) -> Result<Option<Volume<'a>>> {
    match Volume::open(disk, place) {
        Ok(volume) => Ok(Some(volume)),
        Err(error) if error.kind() == Kind::Invalid => Ok(None),
        Err(error) => Err(error.at(format!("{}, {of}", named(place.number)))),
    }
}

/// A partition in words.
pub(super) fn named(partition: u32) -> String {
    if partition == 0 { "its disk".to_owned() } else { format!("partition {partition}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ops::Silent;
    use crate::ops::import::{Format, ImportRequest, import};
    use crate::store::{three_versions, unseal};

    #[test]
    fn two_versions_are_opened_once_and_held_until_others_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = three_versions(dir.path());
        let exact = |version| BaseRef::exact("os".parse().unwrap(), version);
        let [first, second, third] = [1, 2, 3].map(|version| store.base(&exact(version)).unwrap().id());
        let bases = Bases::default();
        let pair = bases.pair(&store, &first, &third).unwrap();
        assert!(Arc::ptr_eq(&pair, &bases.pair(&store, &first, &third).unwrap()));
        drop(pair);
        let refused = store.remove_base(&exact(3)).unwrap_err();
        assert!(refused.kind() == Kind::Busy && refused.to_string().contains("in use"), "{refused}");
        bases.pair(&store, &first, &second).unwrap();
        store.remove_base(&exact(3)).unwrap();
        assert_eq!(bases.pair(&store, &second, &third).err().unwrap().kind(), Kind::NotFound);
        // What somebody else does may pass: it is looked at again.
        assert_eq!(bases.pair(&store, &second, &third).err().unwrap().kind(), Kind::NotFound);
        let other = BaseId { digest: first.digest, ..second };
        assert_eq!(bases.pair(&store, &first, &other).err().unwrap().kind(), Kind::Changed);
        unseal(dir.path());
    }

    #[test]
    fn versions_that_cannot_be_merged_are_read_once_and_the_reason_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let (store, versions) = three_versions(dir.path());
        let mut bytes = versions[2].clone();
        // One partition, where the others have none.
        bytes[446..510].fill(0);
        bytes[446 + 4] = 0x83;
        bytes[446 + 8..][..8].copy_from_slice(&[64, 0, 0, 0, 0, 2, 0, 0]);
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let source = dir.path().join("source");
        std::fs::write(&source, &bytes).unwrap();
        let (name, format) = ("os".parse().unwrap(), Some(Format::Raw));
        let request = ImportRequest { source, format, name, update: true, follow_backing: false };
        import(&store, &request, &Silent).unwrap();
        let exact = |version| BaseRef::exact("os".parse().unwrap(), version);
        let [first, last] = [1, 4].map(|version| store.base(&exact(version)).unwrap().id());
        let bases = Bases::default();
        let why = bases.pair(&store, &first, &last).err().unwrap();
        assert_eq!(why.kind(), Kind::Unsupported);
        // Nobody has it open, and nobody opens it again.
        store.remove_base(&exact(4)).unwrap();
        let again = bases.pair(&store, &first, &last).err().unwrap();
        assert_eq!((again.kind(), again.to_string()), (why.kind(), why.to_string()));
        assert_eq!(Bases::default().pair(&store, &first, &last).err().unwrap().kind(), Kind::NotFound);
        unseal(dir.path());
    }
}
