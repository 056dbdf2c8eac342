//! What a file of the result holds, when both sides have it.

use super::decide::{Merge, shown};
use super::fate::{Clash, Source};
use super::packages::Keyed;
use super::pair::Object;
use super::rules::{Policy, Winner};
use super::text::{TextMerge, merge_text};
use super::unified::three_way_diff;
use super::{Side, Three, Version, accounts, debconf, dpkg};
use crate::error::Result;

impl Merge<'_> {
    pub(super) fn merged_target(&mut self, path: &[u8], object: Object, policy: Policy) -> Vec<u8> {
        let targets = self.files(object).map(|file| file.map(|file| file.target.clone()));
        let clear = match targets.old {
            None => (targets.base == targets.clone).then_some(Side::Base),
            Some(_) => targets.clear(),
        };
        let side = clear.unwrap_or_else(|| {
            let clash = if targets.old.is_some() { Clash::Content } else { Clash::Added };
            self.lie_beside(object, policy.winner);
            self.clash(path, clash, policy.winner, "the link leads to two places")
        });
        targets.of(side).clone().unwrap_or_default()
    }

    pub(super) fn content(&mut self, path: &[u8], object: Object, policy: Policy) -> Result<Source> {
        let (Some(base), Some(clone)) = (object.base, object.clone) else {
            return Ok(Source::Of(Side::Base));
        };
        let contents = self.input.contents;
        let (base, clone) = ((Version::Base, base), (Version::Clone, clone));
        if let Some(old) = object.old.map(|old| (Version::Old, old)) {
            if contents.same(old, clone)? {
                return Ok(Source::Of(Side::Base));
            }
            if contents.same(old, base)? {
                return Ok(Source::Of(Side::Clone));
            }
        }
        if contents.same(base, clone)? {
            return Ok(Source::Of(Side::Base));
        }
        self.both_changed(path, object, policy)
    }

    fn both_changed(&mut self, path: &[u8], object: Object, policy: Policy) -> Result<Source> {
        let clash = if object.old.is_some() { Clash::Content } else { Clash::Added };
        if Keyed::of(path).is_none() && self.is_volatile(path) {
            return Ok(Source::Of(self.lost(path, object, clash, policy, "")));
        }
        let texts = match self.texts(object) {
            Ok(texts) => texts,
            // Too long to be looked into: it is merged by nobody.
            Err(error) if error.kind() == crate::Kind::Unsupported => {
                return Ok(Source::Of(self.lost(path, object, clash, policy, "")));
            }
            Err(error) => return Err(error),
        };
        let bytes = texts.map(Vec::as_slice);
        if let Some(merged) = self.keyed(path, object, bytes, policy.winner)? {
            return Ok(merged);
        }
        if policy.lines
            && object.old.is_some()
            && let TextMerge::Merged(text) = merge_text(bytes)
        {
            self.settled.push(format!("{}: both changed it, in different lines", shown(path)));
            return Ok(Source::Bytes(text));
        }
        let diff = three_way_diff(bytes);
        Ok(Source::Of(self.lost(path, object, clash, policy, &diff)))
    }

    /// A clash of contents: one side's is taken whole, and the other's may lie beside it.
    fn lost(&mut self, path: &[u8], object: Object, clash: Clash, policy: Policy, diff: &str) -> Side {
        let side = self.clash(path, clash, policy.winner, "");
        if let Some(last) = self.conflicts.last_mut().filter(|last| last.path == path && last.clash == clash)
        {
            diff.clone_into(&mut last.diff);
        }
        self.lie_beside(object, policy.winner);
        side
    }

    fn lie_beside(&mut self, object: Object, winner: Winner) {
        if winner == Winner::Both
            && let Some(base) = object.base
        {
            self.siblings.push(self.objects.object(Version::Base, base));
        }
    }

    fn texts(&self, object: Object) -> Result<Three<Vec<u8>>> {
        let read = |version: Version| match *object.of_version(version) {
            Some(ino) => self.input.contents.read((version, ino)),
            None => Ok(Vec::new()),
        };
        Ok(Three { old: read(Version::Old)?, base: read(Version::Base)?, clone: read(Version::Clone)? })
    }

    /// The merge of a database by its keys; nothing when the file is no such database, or breaks its format.
    fn keyed(
        &mut self,
        path: &[u8],
        object: Object,
        texts: Three<&[u8]>,
        winner: Winner,
    ) -> Result<Option<Source>> {
        let merged = match Keyed::of(path) {
            Some(Keyed::Accounts(database)) => accounts::merge(database, texts, winner),
            Some(Keyed::Dpkg(database)) => dpkg::merge_small(database, texts, winner),
            Some(Keyed::Debconf) => debconf::merge(texts, winner),
            Some(Keyed::Foreign(name)) => {
                self.clash(path, Clash::Database, Winner::Fail, &format!("{name} is not merged"));
                return Ok(Some(Source::Of(Side::Clone)));
            }
            _ => return Ok(None),
        };
        match merged {
            Ok(merged) => {
                self.settled.extend(merged.settled);
                for conflict in &merged.conflicts {
                    self.clash(path, Clash::Database, Winner::Fail, conflict);
                }
                Ok(Some(Source::Bytes(merged.bytes)))
            }
            Err(error) => {
                self.lie_beside(object, winner);
                let side = self.clash(path, Clash::Database, winner, &error.to_string());
                Ok(Some(Source::Of(side)))
            }
        }
    }
}
