//! A three-way merge by paths alone, as stupid as it can be: nothing moves, and everything has one name.

use super::memfs::{Bytes, Fs, Map, Seen};
use cowshed::guestfs::ext4::FileKind;
use cowshed::ops::merge::{Clash, Side};
use std::collections::{BTreeMap, BTreeSet};

pub type Conflicts = BTreeSet<(Bytes, Clash)>;

/// Something of the result; `must`: it is there although a side deleted it.
#[derive(Clone)]
struct Alive {
    seen: Seen,
    must: bool,
}

pub struct Naive {
    winner: Side,
    conflicts: Conflicts,
}

fn alike(one: &Seen, other: &Seen) -> bool {
    one.kind == other.kind && one.device == other.device
}

fn is_in(folder: &[u8], path: &[u8]) -> bool {
    path.len() > folder.len() && path.starts_with(folder) && path[folder.len()] == b'/'
}

impl Naive {
    /// The merged tree, and what is in conflict.
    pub fn merge(old: &Map, base: &Map, clone: &Map, winner: Side) -> (Map, Conflicts) {
        let mut naive = Self { winner, conflicts: Conflicts::new() };
        let paths: BTreeSet<&Bytes> = old.keys().chain(base.keys()).chain(clone.keys()).collect();
        // What became of the object that was there, and what came instead, by path.
        let mut kept: BTreeMap<&Bytes, Alive> = BTreeMap::new();
        let mut added: BTreeMap<&Bytes, Vec<(Side, Alive)>> = BTreeMap::new();
        for path in &paths {
            let (o, b, c) = (old.get(*path), base.get(*path), clone.get(*path));
            let stays = |now: Option<&Seen>| now.filter(|now| o.is_some_and(|o| alike(o, now))).cloned();
            let news = |now: Option<&Seen>| now.filter(|now| !o.is_some_and(|o| alike(o, now))).cloned();
            if let Some(o) = o
                && let Some(alive) = naive.kept(path, o, stays(b), stays(c))
            {
                kept.insert(path, alive);
            }
            let here = match (news(b), news(c)) {
                (Some(b), Some(c)) if alike(&b, &c) => {
                    let seen = naive.both(path, None, &b, &c);
                    vec![(Side::Clone, Alive { seen, must: false })]
                }
                (b, c) => [(Side::Base, b), (Side::Clone, c)]
                    .into_iter()
                    .filter_map(|(side, seen)| Some((side, Alive { seen: seen?, must: false })))
                    .collect(),
            };
            added.insert(path, here);
        }
        naive.folders(&paths, old, base, clone, &mut kept, &mut added);
        (naive.names(&paths, &mut kept, &mut added), naive.conflicts)
    }

    /// What was there before.
    fn kept(&mut self, path: &Bytes, o: &Seen, b: Option<Seen>, c: Option<Seen>) -> Option<Alive> {
        let (by, other, clash) = match (b, c) {
            (None, None) => return None,
            (Some(b), Some(c)) => return Some(Alive { seen: self.both(path, Some(o), &b, &c), must: false }),
            (None, Some(c)) => (Side::Base, c, Clash::DeletedInBase),
            (Some(b), None) => (Side::Clone, b, Clash::DeletedInClone),
        };
        if other.kind == FileKind::Directory || other == *o {
            return None;
        }
        self.conflicts.insert((path.clone(), clash));
        (self.winner != by).then_some(Alive { seen: other, must: true })
    }

    fn pick<T: Clone + PartialEq>(&mut self, clash: (&Bytes, Clash), o: Option<&T>, b: &T, c: &T) -> T {
        if b == c || Some(c) == o {
            return b.clone();
        }
        if Some(b) == o {
            return c.clone();
        }
        self.conflicts.insert((clash.0.clone(), clash.1));
        if self.winner == Side::Base { b.clone() } else { c.clone() }
    }

    fn both(&mut self, path: &Bytes, o: Option<&Seen>, b: &Seen, c: &Seen) -> Seen {
        let meta = (path, Clash::Metadata);
        let data = (path, if o.is_some() { Clash::Content } else { Clash::Added });
        let keys: BTreeSet<&Bytes> = b.xattrs.keys().chain(c.xattrs.keys()).collect();
        let mut xattrs = BTreeMap::new();
        for key in keys {
            let get = |seen: &Seen| seen.xattrs.get(key).cloned();
            if let Some(value) = self.pick(meta, o.map(get).as_ref(), &get(b), &get(c)) {
                xattrs.insert(key.clone(), value);
            }
        }
        Seen {
            kind: b.kind,
            device: b.device,
            mode: self.pick(meta, o.map(|o| &o.mode), &b.mode, &c.mode),
            uid: self.pick(meta, o.map(|o| &o.uid), &b.uid, &c.uid),
            gid: self.pick(meta, o.map(|o| &o.gid), &b.gid, &c.gid),
            flags: self.pick(meta, o.map(|o| &o.flags), &b.flags, &c.flags),
            project: self.pick(meta, o.map(|o| &o.project), &b.project, &c.project),
            target: self.pick(data, o.map(|o| &o.target), &b.target, &c.target),
            content: self.pick(data, o.map(|o| &o.content), &b.content, &c.content),
            xattrs,
        }
    }

    /// Folders that one side deleted: they come back for what has to be there, else for what is new in them, if that
    /// wins. The deepest first.
    fn folders<'a>(
        &mut self,
        paths: &BTreeSet<&'a Bytes>,
        old: &Map,
        base: &Map,
        clone: &Map,
        kept: &mut BTreeMap<&'a Bytes, Alive>,
        added: &mut BTreeMap<&'a Bytes, Vec<(Side, Alive)>>,
    ) {
        let is_folder =
            |map: &Map, path: &Bytes| map.get(path).is_some_and(|seen| seen.kind == FileKind::Directory);
        let depth = |path: &Bytes| path.iter().filter(|byte| **byte == b'/').count();
        let mut gone: Vec<&'a Bytes> = paths
            .iter()
            .copied()
            .filter(|path| is_folder(old, path) && (is_folder(base, path) != is_folder(clone, path)))
            .collect();
        gone.sort_by_key(|path| std::cmp::Reverse(depth(path)));
        for folder in gone {
            let (stays, map) =
                if is_folder(base, folder) { (Side::Base, base) } else { (Side::Clone, clone) };
            let must = kept.iter().any(|(path, alive)| is_in(folder, path) && alive.must);
            let new = added.iter().any(|(path, here)| {
                is_in(folder, path) && depth(path) == depth(folder) + 1 && !here.is_empty()
            });
            if new && !must {
                self.conflicts.insert((folder.clone(), Clash::Folder));
            }
            if must || (new && self.winner == stays) {
                kept.insert(folder, Alive { seen: map[folder].clone(), must: true });
            } else {
                kept.retain(|path, _| !is_in(folder, path));
                added.iter_mut().filter(|(path, _)| is_in(folder, path)).for_each(|(_, here)| here.clear());
            }
        }
    }

    /// One thing for each path.
    fn names(
        &mut self,
        paths: &BTreeSet<&Bytes>,
        kept: &mut BTreeMap<&Bytes, Alive>,
        added: &mut BTreeMap<&Bytes, Vec<(Side, Alive)>>,
    ) -> Map {
        let mut result = Map::new();
        for path in paths {
            let mut here = added.remove(*path).unwrap_or_default();
            let found = match (kept.remove(*path), here.len()) {
                (Some(alive), _) => Some(alive),
                (None, 2) => {
                    self.conflicts.insert(((*path).clone(), Clash::Name));
                    here.into_iter().find(|(side, _)| *side == self.winner).map(|(_, alive)| alive)
                }
                (None, _) => here.pop().map(|(_, alive)| alive),
            };
            let is_folder = found.as_ref().is_some_and(|alive| alive.seen.kind == FileKind::Directory);
            if !is_folder {
                kept.retain(|inside, _| !is_in(path, inside));
                added.retain(|inside, _| !is_in(path, inside));
            }
            if let Some(alive) = found {
                result.insert((*path).clone(), alive.seen);
            }
        }
        result
    }
}

/// Where the names of a map are after a move.
pub fn moved<T>(map: BTreeMap<Bytes, T>, from: &[u8], to: &[u8]) -> BTreeMap<Bytes, T> {
    map.into_iter().map(|(path, value)| (moved_path(&path, from, to), value)).collect()
}

pub fn moved_path(path: &[u8], from: &[u8], to: &[u8]) -> Bytes {
    match path.strip_prefix(from) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => [to, rest].concat(),
        _ => path.to_vec(),
    }
}

/// All contents and link targets of a filesystem.
pub fn contents(fs: &Fs) -> BTreeSet<Bytes> {
    fs.inodes.values().flat_map(|inode| [inode.content.clone(), inode.target.clone()]).collect()
}
