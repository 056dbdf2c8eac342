//! Which package a path belongs to, and which side its files come from.

use super::package::Id;
use super::status::{Packages, Take};
use crate::error::{Error, Result};
use crate::ops::merge::keyed::{lines, shown};
use crate::ops::merge::{Side, Three};
use std::collections::{HashMap, HashSet};

/// Most bytes of file lists on one side.
const LISTS_MAX: usize = 256 << 20;
/// Folder of the files that dpkg keeps for each package.
const INFO: &[u8] = b"/var/lib/dpkg/info/";

/// The lists of files of one side: a name in `info` without `.list` (`bash`, `libc6:amd64`), and the file's bytes.
pub type Lists<'a> = &'a [(&'a [u8], &'a [u8])];

/// A path that packages of both sides have in the result. It is in conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    /// The package of the base's, and the clone's.
    pub packages: [Id; 2],
}

/// Packages whose files come from one side, and the paths that this is about.
#[derive(Debug, Default)]
pub struct Units {
    takes: HashMap<Vec<u8>, Vec<(Id, Take)>>,
    paths: HashMap<Vec<u8>, Result<(Side, Id), Contested>>,
    conffiles: HashSet<Vec<u8>>,
    aliases: Vec<(Vec<u8>, Vec<u8>)>,
    native: Vec<u8>,
}

/// A package that lists a path.
struct Claim {
    id: Id,
    side: Side,
    take: Take,
    /// Whether the result has the package as this side has it.
    stays: bool,
}

impl Units {
    /// The units of `packages`. `lists` has no old base; `diversions` are the files `/var/lib/dpkg/diversions`;
    /// `aliases` are folders that are symbolic links, `/bin` and `/usr/bin`.
    ///
    /// # Errors
    /// `Unsupported` when the lists of a side have more than 256 MiB.
    pub fn new(
        packages: &Packages,
        lists: [(Side, Lists<'_>); 2],
        diversions: Three<&[u8]>,
        aliases: &[(&[u8], &[u8])],
    ) -> Result<Self> {
        let mut units = Self { native: packages.native.clone(), ..Self::default() };
        units.aliases = aliases.iter().map(|(from, to)| (from.to_vec(), to.to_vec())).collect();
        for (id, (take, _)) in &packages.takes {
            units.takes.entry(id.name.clone()).or_default().push((id.clone(), *take));
        }
        for stanza in super::stanza::parse(&packages.status)? {
            units.conffiles(stanza.get("Conffiles").unwrap_or_default());
        }
        let mut claims: HashMap<Vec<u8>, Vec<Claim>> = HashMap::new();
        // First the paths of units, then who else lists one of them.
        for whole in [true, false] {
            for (side, lists) in lists {
                if lists.iter().map(|(_, list)| list.len()).sum::<usize>() > LISTS_MAX {
                    return Err(Error::unsupported(
                        "the lists of its packages' files have more than 256 MiB",
                    ));
                }
                let diverted = diverted(diversions.of(side));
                for (name, list) in lists {
                    units.claim(packages, &mut claims, (side, name, list), &diverted, whole);
                }
            }
        }
        units.paths =
            claims.into_iter().filter_map(|(path, claims)| Some((path, verdict(claims)?))).collect();
        Ok(units)
    }

    /// The side that the file at `path` is taken from wholly (also when it is not there), with the package that says
    /// so. Nothing for a path of no unit and for a configuration file: those are merged for themselves.
    ///
    /// To be asked for what is no folder on either side.
    ///
    /// # Errors
    /// [`Contested`] when packages of both sides have the path.
    pub fn side_of(&self, path: &[u8]) -> Result<Option<(Side, &Id)>, Contested> {
        if let Some(info) = path.strip_prefix(INFO) {
            return Ok(self.of_info(info));
        }
        let path = self.canonical(path);
        if self.conffiles.contains(&path) {
            return Ok(None);
        }
        match self.paths.get(&path) {
            None => Ok(None),
            Some(Ok((side, id))) => Ok(Some((*side, id))),
            Some(Err(contested)) => Err(contested.clone()),
        }
    }

    /// The package's own files in `info` go with its stanza.
    fn of_info(&self, file: &[u8]) -> Option<(Side, &Id)> {
        let dot = file.iter().rposition(|&byte| byte == b'.')?;
        let (id, take) = self.named(&file[..dot])?;
        Some((forced(*take)?, id))
    }

    /// The package of a name in `info`.
    fn named(&self, name: &[u8]) -> Option<&(Id, Take)> {
        let colon = name.iter().position(|&byte| byte == b':');
        let (name, arch) = colon.map_or((name, None), |at| (&name[..at], Some(&name[at + 1..])));
        let takes = self.takes.get(name)?;
        let arch = arch.filter(|arch| *arch != b"all").unwrap_or(&self.native);
        takes.iter().find(|(id, _)| id.arch == arch).or(if colon.is_none() { takes.first() } else { None })
    }

    fn conffiles(&mut self, field: &[u8]) {
        for line in lines(field) {
            let path = line.trim_ascii_start();
            let path = path.split(|&byte| byte == b' ').next().unwrap_or_default();
            if path.starts_with(b"/") {
                self.conffiles.insert(self.canonical(path));
            }
        }
    }

    fn canonical(&self, path: &[u8]) -> Vec<u8> {
        for (from, to) in &self.aliases {
            if let Some(rest) = path.strip_prefix(&from[..])
                && rest.first() == Some(&b'/')
            {
                return [&to[..], rest].concat();
            }
        }
        path.to_vec()
    }

    fn claim(
        &self,
        packages: &Packages,
        claims: &mut HashMap<Vec<u8>, Vec<Claim>>,
        (side, name, list): (Side, &[u8], &[u8]),
        diverted: &HashMap<&[u8], (&[u8], &[u8])>,
        whole: bool,
    ) {
        let Some((id, take)) = self.named(name) else { return };
        if forced(*take).is_some() != whole {
            return;
        }
        let from = packages.takes.get(id).map(|(_, from)| *from);
        let stays = from == Some(side) && !matches!(take, Take::Gone(_));
        for path in lines(list).into_iter().filter(|path| path.starts_with(b"/") && *path != b"/.") {
            let path = match diverted.get(path) {
                Some((to, by)) if *by != id.name => to,
                _ => path,
            };
            let claim = Claim { id: id.clone(), side, take: *take, stays };
            let path = self.canonical(path);
            if whole {
                claims.entry(path).or_default().push(claim);
            } else if let Some(claims) = claims.get_mut(&path) {
                claims.push(claim);
            }
        }
    }
}

fn forced(take: Take) -> Option<Side> {
    match take {
        Take::Whole(side) | Take::Gone(side) => Some(side),
        Take::Either => None,
    }
}

/// What the claims to one path come to: those of packages that are in the result count, and if there are none, the
/// path goes with the units that leave it.
fn verdict(claims: Vec<Claim>) -> Option<Result<(Side, Id), Contested>> {
    let stays = claims.iter().any(|claim| claim.stays);
    let mut found: [Option<Id>; 2] = [None, None];
    for claim in claims.into_iter().filter(|claim| claim.stays || !stays) {
        if let Some(side) = forced(claim.take) {
            // A unit that stays is of the side whose list this is.
            let side = if claim.stays { claim.side } else { side };
            found[usize::from(side == Side::Clone)].get_or_insert(claim.id);
        }
    }
    match found {
        [None, None] => None,
        [Some(id), None] => Some(Ok((Side::Base, id))),
        [None, Some(id)] => Some(Ok((Side::Clone, id))),
        [Some(base), Some(clone)] => Some(Err(Contested { packages: [base, clone] })),
    }
}

/// Where a file that another package's took the place of went, and whose that is: path -> (path, package).
fn diverted(file: &[u8]) -> HashMap<&[u8], (&[u8], &[u8])> {
    lines(file).chunks_exact(3).map(|three| (three[0], (three[1], three[2]))).collect()
}

impl std::fmt::Display for Contested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [base, clone] = &self.packages;
        write!(f, "{} of the base and {} of the clone both have it", shown(&base.name), shown(&clone.name))
    }
}
