//! dpkg's databases, merged by package.

mod alternatives;
mod check;
mod package;
mod relation;
mod small;
mod stanza;
mod status;
mod units;
mod version;

pub use alternatives::{Alternatives, merge as merge_alternatives};
pub use check::{Broken, check};
pub use package::Id;
pub use small::{Small, merge as merge_small};
pub use stanza::{Stanza, parse};
pub use status::{Change, Packages, Preference, Take, What, merge};
pub use units::{Contested, Lists, Units};
pub use version::compare;
