//! What is inside a disk.
//!
//! Everything here reads bytes that a guest wrote: no table is believed before it is checked, and no length read from
//! one decides how much memory is taken or how long a loop runs.

mod bits;
pub mod edit;
pub mod ext4;
pub mod fat;
pub mod free;
mod fsck;
mod gpt;
mod mbr;
pub mod partitions;
pub mod swap;
mod time;
mod window;

pub use fsck::{Verdict, fsck};
pub use partitions::{Partition, PartitionKind, partitions, places};
pub use time::Time;
pub use window::Window;
