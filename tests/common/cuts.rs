//! The folders that a power cut may leave, built from a [`Journal`].
//!
//! Content: what is written to a file is durable by a sync of that file or of the file system; of the rest any sectors
//! may be there, lengths and punched holes as a prefix. Times and mode are durable by `fsync` (not `fdatasync`) only.
//! Names come in two models: [`Names::Journal`] (a prefix of all changes of names; an `fsync` of anything makes all
//! earlier ones durable) and [`Names::Folders`] (only the `fsync` of a folder makes its names durable, of the others
//! any subset may be there; a rename, or an exchange, is one change that is there in both folders or in neither, and durable by the
//! `fsync` of either).
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

use super::journal::{Event, Op};
use super::rng::Rng;
use super::world::{Id, SECTOR, World};
use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Journal,
    Folders,
}

/// What is kept of the changes that are not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: finds a missing sync.
    None,
    /// Everything: a killed process.
    All,
    /// Everything but the n-th: finds a wrong order.
    Lost(usize),
    /// Only the n-th: finds a wrong order.
    Only(usize),
    /// The first ones.
    First(usize),
    /// Each with an even chance.
    Half(u64),
    /// Names as in `Half`, each sector with an even chance.
    Sectors(u64),
    /// Each by its bit.
    Mask(u64),
}

/// The moment after some events, with what is durable then.
pub struct Cut<'a> {
    start: &'a World,
    done: &'a [Event],
    names: Names,
    /// For each event whether its content or name is durable, and whether its times and mode are.
    durable: Vec<(bool, bool)>,
}

impl<'a> Cut<'a> {
    pub fn new(start: &'a World, done: &'a [Event], names: Names) -> Self {
        let mut durable = vec![(false, false); done.len()];
        let (mut data, mut files, mut folders) = (HashSet::new(), HashSet::new(), HashSet::new());
        let (mut everything, mut any) = (false, false);
        for (number, event) in done.iter().enumerate().rev() {
            let named = |places: &[&(Id, String)]| match names {
                Names::Journal => any,
                Names::Folders => everything || places.iter().any(|place| folders.contains(&place.0)),
            };
            let written = |file: &Id| (everything || data.contains(file), everything || files.contains(file));
            durable[number] = match &event.op {
                Op::CreateFile(place, file, _) => (named(&[place]), everything || files.contains(file)),
                Op::MakeFolder(place, _) | Op::Link(place, _) | Op::Remove(place, _) => {
                    (named(&[place]), true)
                }
                Op::Rename(from, to, _) | Op::Exchange(from, to, _) => (named(&[from, to]), true),
                Op::Write(file, ..) | Op::Punch(file, ..) | Op::SetLen(file, _) => written(file),
                Op::Protect(file) => (true, written(file).1),
                sync => {
                    match sync {
                        Op::SyncData(file) => drop(data.insert(*file)),
                        Op::SyncFile(file) => drop((data.insert(*file), files.insert(*file))),
                        Op::SyncFolder(folder) => drop(folders.insert(*folder)),
                        _ => everything = true,
                    }
                    any |= !matches!(sync, Op::SyncData(_));
                    (true, true)
                }
            };
        }
        Self { start, done, names, durable }
    }

    fn pending(&self) -> usize {
        self.durable.iter().filter(|(content, _)| !content).count()
    }

    /// At most `most` ways to keep what is pending; all of them where they are few.
    pub fn keeps(&self, rng: &mut Rng, most: usize) -> Vec<Keep> {
        let count = self.pending();
        if count == 0 {
            return vec![Keep::None, Keep::All];
        }
        if count < 6 && 1 << count <= most {
            let mut all: Vec<Keep> = (0..1 << count).map(Keep::Mask).collect();
            all.push(Keep::Sectors(rng.bits()));
            return all;
        }
        let mut all = vec![Keep::None, Keep::All];
        while all.len() < most {
            let one = rng.below(count as u64) as usize;
            all.push(match rng.below(7) {
                0 | 1 => Keep::Lost(one),
                2 => Keep::Only(one),
                3 => Keep::First(one),
                4 | 5 => Keep::Half(rng.bits()),
                _ => Keep::Sectors(rng.bits()),
            });
        }
        all
    }

    /// The folder after the cut.
    pub fn state(&self, keep: Keep) -> World {
        let mut world = self.start.clone();
        let mut rng = Rng::new(match keep {
            Keep::Half(seed) | Keep::Sectors(seed) | Keep::Mask(seed) => seed,
            _ => 0,
        });
        let mut number = 0;
        let (mut name_lost, mut shape_lost, mut meta_lost) = (false, HashSet::new(), HashSet::new());
        for (event, (content, meta)) in self.done.iter().zip(&self.durable) {
            let mut kept = *content;
            if !kept {
                kept = match keep {
                    Keep::None => false,
                    Keep::All => true,
                    Keep::Lost(one) => number != one,
                    Keep::Only(one) => number == one,
                    Keep::First(count) => number < count,
                    Keep::Half(_) | Keep::Sectors(_) => rng.chance(50),
                    Keep::Mask(mask) => mask >> number & 1 == 1,
                };
                number += 1;
            }
            match &event.op {
                Op::Write(file, at, data) => match keep {
                    Keep::Sectors(_) if !content => sectors(&mut world, *file, *at, data, &mut rng),
                    _ if kept => world.file(*file).write(*at, data),
                    _ => {}
                },
                Op::Punch(file, ..) | Op::SetLen(file, _) => {
                    if !kept {
                        shape_lost.insert(*file);
                    }
                    if !shape_lost.contains(file) {
                        reshape(&mut world, &event.op);
                    }
                }
                op => {
                    name_lost |= !kept && self.names == Names::Journal;
                    if kept && !name_lost {
                        name(&mut world, op);
                    }
                    // What is there for later changes, whether the name is or not.
                    match op {
                        Op::CreateFile(_, file, inode) => world.file(*file).inode = *inode,
                        Op::MakeFolder(_, folder) => {
                            world.entries(*folder);
                        }
                        _ => {}
                    }
                }
            }
            let (Some(now), Some(file)) = (event.meta, touched(&event.op)) else { continue };
            let fresh = matches!(event.op, Op::CreateFile(..));
            let kept = *meta || fresh || matches!(keep, Keep::All | Keep::Lost(_)) || {
                matches!(keep, Keep::Half(_) | Keep::Sectors(_) | Keep::Mask(_)) && rng.chance(70)
            };
            if !kept {
                meta_lost.insert(file);
            }
            if !meta_lost.contains(&file) {
                world.file(file).meta = now;
            }
        }
        world
    }
}

fn touched(op: &Op) -> Option<Id> {
    match op {
        Op::CreateFile(_, file, _)
        | Op::Write(file, ..)
        | Op::Punch(file, ..)
        | Op::SetLen(file, _)
        | Op::Protect(file) => Some(*file),
        _ => None,
    }
}

fn reshape(world: &mut World, op: &Op) {
    match op {
        Op::Punch(file, at, len) => world.file(*file).punch(*at, *len),
        Op::SetLen(file, len) => world.file(*file).set_len(*len),
        _ => {}
    }
}

fn name(world: &mut World, op: &Op) {
    match op {
        Op::CreateFile((folder, name), id, _) => {
            world.file(*id);
            world.entries(*folder).insert(name.clone(), *id);
        }
        Op::MakeFolder((folder, name), id) => {
            world.entries(*id);
            world.entries(*folder).insert(name.clone(), *id);
        }
        Op::Link((folder, name), id) => {
            world.file(*id);
            world.entries(*folder).insert(name.clone(), *id);
        }
        Op::Rename((from, old), (to, new), id) => {
            world.entries(*from).remove(old);
            world.entries(*to).insert(new.clone(), *id);
        }
        Op::Exchange((from, name), (to, other), [first, second]) => {
            world.entries(*from).insert(name.clone(), *second);
            world.entries(*to).insert(other.clone(), *first);
        }
        Op::Remove((folder, name), _) => drop(world.entries(*folder).remove(name)),
        _ => {}
    }
}

fn sectors(world: &mut World, file: Id, at: u64, data: &[u8], rng: &mut Rng) {
    let mut from = 0;
    while from < data.len() {
        let here = at + from as u64;
        let len = (SECTOR - (here % SECTOR as u64) as usize).min(data.len() - from);
        if rng.chance(50) {
            world.file(file).write(here, &data[from..from + len]);
        }
        from += len;
    }
}
