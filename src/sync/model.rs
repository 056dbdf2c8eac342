//! The engine's locks and atomics as a model checker's.

#[cfg(cowshed_model = "loom")]
use loom as library;
#[cfg(cowshed_model = "shuttle")]
use shuttle as library;

pub(crate) use library::sync::atomic;
pub(crate) use library::thread;

use atomic::{AtomicBool, AtomicUsize, Ordering};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LockResult, PoisonError};
use std::time::Duration;

/// A thread that panicked leaves its locks to the others, as with `parking_lot`.
fn unpoisoned<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
pub(crate) struct Mutex<T>(library::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    held: Option<library::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(library::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { lock: self, held: Some(unpoisoned(self.0.lock())) }
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

const HELD: &str = "a guard holds its lock except while it waits";

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect(HELD)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(library::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.held = guard.held.take().map(|held| unpoisoned(self.0.wait(held)));
    }

    /// Time is not modelled: the wait is over once others have had their turn.
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) {
        guard.held = None;
        thread::yield_now();
        guard.held = Some(unpoisoned(guard.lock.0.lock()));
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Who holds a [`RwLock`], and who waits to write.
#[derive(Default)]
struct Holders {
    readers: usize,
    writing: bool,
    waiting: usize,
}

/// A writer that waits keeps new readers out, as with `parking_lot`: two requests that take locks in different orders
/// block each other here as they would there.
#[derive(Default)]
pub(crate) struct RwLock<T> {
    holders: Mutex<Holders>,
    changed: Condvar,
    /// Never waited for: `holders` says who may.
    value: std::sync::RwLock<T>,
}

pub(crate) struct RwLockReadGuard<'a, T> {
    value: Option<std::sync::RwLockReadGuard<'a, T>>,
    lock: &'a RwLock<T>,
}

pub(crate) struct RwLockWriteGuard<'a, T> {
    value: Option<std::sync::RwLockWriteGuard<'a, T>>,
    lock: &'a RwLock<T>,
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { holders: Mutex::default(), changed: Condvar::new(), value: std::sync::RwLock::new(value) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        let mut holders = self.holders.lock();
        while holders.writing || holders.waiting > 0 {
            self.changed.wait(&mut holders);
        }
        holders.readers += 1;
        RwLockReadGuard { value: Some(unpoisoned(self.value.read())), lock: self }
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        let mut holders = self.holders.lock();
        holders.waiting += 1;
        while holders.writing || holders.readers > 0 {
            self.changed.wait(&mut holders);
        }
        holders.waiting -= 1;
        holders.writing = true;
        RwLockWriteGuard { value: Some(unpoisoned(self.value.write())), lock: self }
    }
}

impl<'a, T> RwLockWriteGuard<'a, T> {
    /// Holds the lock for reading from now on; nobody writes in between.
    pub(crate) fn downgrade(mut guard: Self) -> RwLockReadGuard<'a, T> {
        let lock = guard.lock;
        let mut holders = lock.holders.lock();
        guard.value = None;
        std::mem::forget(guard);
        holders.writing = false;
        holders.readers += 1;
        lock.changed.notify_all();
        RwLockReadGuard { value: Some(unpoisoned(lock.value.read())), lock }
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RwLock")
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        let mut holders = self.lock.holders.lock();
        self.value = None;
        holders.readers -= 1;
        self.lock.changed.notify_all();
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        let mut holders = self.lock.holders.lock();
        self.value = None;
        holders.writing = false;
        self.lock.changed.notify_all();
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect(HELD)
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect(HELD)
    }
}

/// A value that is made at its first use, under a lock that others wait for.
pub(crate) struct OnceLock<T> {
    making: Mutex<()>,
    made: AtomicBool,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self { making: Mutex::new(()), made: AtomicBool::new(false), value: std::sync::OnceLock::new() }
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if self.made.load(Ordering::Acquire) {
            return self.value.get().expect("it was made");
        }
        let _making = self.making.lock();
        let value = self.value.get_or_init(make);
        self.made.store(true, Ordering::Release);
        value
    }
}

impl<T> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnceLock")
    }
}

/// `arc_swap` as a place in a list of all values that were ever stored: what it publishes, and with which ordering,
/// is modelled; when a value is freed is not.
pub(crate) struct ArcSwapOption<T> {
    at: AtomicUsize,
    values: std::sync::Mutex<Vec<Option<Arc<T>>>>,
}

impl<T> ArcSwapOption<T> {
    pub(crate) fn empty() -> Self {
        Self { at: AtomicUsize::new(0), values: std::sync::Mutex::new(vec![None]) }
    }

    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        let at = self.at.load(Ordering::Acquire);
        unpoisoned(self.values.lock())[at].clone()
    }

    pub(crate) fn load(&self) -> Option<Arc<T>> {
        self.load_full()
    }

    pub(crate) fn store(&self, value: Option<Arc<T>>) {
        let at = {
            let mut values = unpoisoned(self.values.lock());
            values.push(value);
            values.len() - 1
        };
        self.at.store(at, Ordering::Release);
    }
}

impl<T> fmt::Debug for ArcSwapOption<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArcSwapOption")
    }
}
