//! A merge three ways, as far as it needs no disk: old base, new base and clone, bytes in, bytes or a decision out.
//!
//! A guest wrote every byte that is read here. Each format has a largest size, and no part takes more than about
//! `n log n` steps, or counts its steps and stops.

pub mod accounts;
mod apply;
mod beside;
mod changes;
mod content;
mod databases;
pub mod debconf;
mod decide;
pub mod derived;
pub mod dpkg;
pub mod fat;
mod fate;
pub mod keyed;
pub mod later;
mod names;
mod numbers;
pub mod packages;
mod pair;
mod plan;
pub mod read;
pub mod renumber;
pub mod rules;
pub mod same;
mod steps;
pub mod text;
pub mod tree;
pub mod unified;
mod version;
pub mod volumes;

pub use apply::apply;
pub use databases::Part;
pub use decide::{Forced, Input};
pub use fate::{Clash, Conflict};
pub use pair::Pairs;
pub use plan::{Plan, System, plan, volatile_in_a_sentence};
pub use steps::Step;
pub use version::Version;

/// One thing in its three versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Three<T> {
    /// As it was in the base that the clone was made on.
    pub old: T,
    /// As it is in the base that the clone moves to.
    pub base: T,
    /// As it is in the clone.
    pub clone: T,
}

/// Whose version is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The new base's.
    Base,
    /// The clone's.
    Clone,
}

impl Side {
    /// The word for it in a sentence.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Clone => "clone",
        }
    }
}

impl<T> Three<T> {
    /// What `view` makes of each version.
    pub fn map<'a, U>(&'a self, mut view: impl FnMut(&'a T) -> U) -> Three<U> {
        Three { old: view(&self.old), base: view(&self.base), clone: view(&self.clone) }
    }

    /// The version of `side`.
    pub fn of(&self, side: Side) -> &T {
        match side {
            Side::Base => &self.base,
            Side::Clone => &self.clone,
        }
    }
}

impl<T: PartialEq> Three<T> {
    /// The side that is right without asking anybody: the one that changed, or either when both are the same (then
    /// the clone's). Nothing when both changed, differently.
    pub fn clear(&self) -> Option<Side> {
        if self.base == self.clone || self.base == self.old {
            Some(Side::Clone)
        } else if self.clone == self.old {
            Some(Side::Base)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Side, Three};

    #[test]
    fn the_side_that_changed_is_taken_and_two_changes_are_nobodys() {
        let clear = |old, base, clone| Three { old, base, clone }.clear();
        assert_eq!(clear(1, 1, 2), Some(Side::Clone));
        assert_eq!(clear(1, 2, 1), Some(Side::Base));
        assert_eq!(clear(1, 2, 2), Some(Side::Clone));
        assert_eq!(clear(1, 1, 1), Some(Side::Clone));
        assert_eq!(clear(1, 2, 3), None);
    }
}
