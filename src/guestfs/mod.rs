//! What is inside a disk.
//!
//! Everything here reads bytes that a guest wrote: no table is believed before it is checked, and no length read from
//! one decides how much memory is taken or how long a loop runs.

mod bits;
pub mod edit;
pub mod ext4;
mod ext_resize;
pub mod fat;
pub mod free;
mod fsck;
pub mod fstab;
mod gpt;
mod mbr;
pub mod partitions;
pub(crate) mod relayout;
mod served;
pub mod swap;
mod time;
mod tool;
mod window;

pub(crate) use ext_resize::ExtResize;
pub use fsck::{Verdict, fsck};
pub use partitions::{Partition, PartitionKind, partitions, places};
pub(crate) use served::SharedDisk;
pub use time::Time;
pub use window::Window;
