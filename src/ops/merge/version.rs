//! The three versions that a merge looks at.

use super::{Side, Three};

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// The base that the clone stands on.
    Old,
    /// The base that it moves to.
    Base,
    /// The clone.
    Clone,
}

impl From<Side> for Version {
    fn from(side: Side) -> Self {
        match side {
            Side::Base => Self::Base,
            Side::Clone => Self::Clone,
        }
    }
}

impl<T> Three<T> {
    /// The one of `version`.
    pub fn of_version(&self, version: Version) -> &T {
        match version {
            Version::Old => &self.old,
            Version::Base => &self.base,
            Version::Clone => &self.clone,
        }
    }

    /// The one of `version`, to be changed.
    pub fn of_version_mut(&mut self, version: Version) -> &mut T {
        match version {
            Version::Old => &mut self.old,
            Version::Base => &mut self.base,
            Version::Clone => &mut self.clone,
        }
    }
}
