//! Locks, atomics and threads: the one place from which the engine takes them.
//!
//! They are those of `parking_lot`, `std` and `arc_swap`, as they are. Under `--cfg cowshed_model`, with
//! the name of a model checker, they are those of a model checker, which decides at each use which thread goes on: `tests/models`.

#[cfg(cowshed_model)]
mod model;

#[cfg(cowshed_model)]
pub(crate) use model::*;

#[cfg(not(cowshed_model))]
pub(crate) use {
    arc_swap::ArcSwapOption,
    parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard},
    std::sync::{OnceLock, atomic},
    std::thread,
};

/// A size of the engine, and the small one at which a model comes to its borders.
pub(crate) const fn size(real: usize, model: usize) -> usize {
    if cfg!(cowshed_model) { model } else { real }
}
