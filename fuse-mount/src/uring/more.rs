//! Threads that a queue gets beyond its first ones, when its requests wait for the host's disk.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::ring::Ring;
use super::{answer, stay_on};
use crate::Source;
use crate::requests::MAX_TRANSFER;
use crate::view::View;

/// Most threads of a queue.
const MOST: usize = 8;
/// Most threads of a mount beyond the first ones of its queues.
const MOST_OF_ALL: usize = 32;

/// What all queues of a mount share.
pub(super) struct More {
    device: Arc<OwnedFd>,
    made: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<io::Result<()>>>>,
}

impl More {
    pub(super) fn new(device: Arc<OwnedFd>) -> Self {
        More { device, made: AtomicUsize::new(0), threads: Mutex::default() }
    }

    /// A thread that is still to be waited for.
    pub(super) fn pop(&self) -> Option<JoinHandle<io::Result<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// A queue of the kernel, with its threads. One more stays until the mount ends, for the kernel lets go of no entry before.
pub(super) struct Queue {
    number: u16,
    threads: AtomicUsize,
    busy: AtomicUsize,
    more: Arc<More>,
}

impl Queue {
    pub(super) fn new(number: u16, threads: usize, more: Arc<More>) -> Self {
        Queue { number, threads: AtomicUsize::new(threads), busy: AtomicUsize::new(0), more }
    }

    /// A thread has a request now; true when no other one is left for the next.
    pub(super) fn begin(&self) -> bool {
        self.busy.fetch_add(1, Ordering::Relaxed) + 1 >= self.threads.load(Ordering::Relaxed)
    }

    /// A thread is done with its request.
    pub(super) fn end(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// Adds a thread, if there may be one more. Where it cannot be made, there is none.
    pub(super) fn grow<S: Source>(self: &Arc<Self>, view: &Arc<View<S>>) {
        let one_more = |most: usize| move |count: usize| (count < most).then_some(count + 1);
        let relaxed = Ordering::Relaxed;
        if self.threads.fetch_update(relaxed, relaxed, one_more(MOST)).is_err() {
            return;
        }
        // What is counted here is never given back: it would be tried again and again where it cannot be.
        if self.more.made.fetch_update(relaxed, relaxed, one_more(MOST_OF_ALL)).is_err() {
            return;
        }
        let (queue, view) = (self.clone(), view.clone());
        let builder = thread::Builder::new().name(format!("ring-{}", self.number));
        let thread = builder.spawn(move || {
            stay_on(queue.number);
            let ring = Ring::new(queue.more.device.as_fd(), queue.number, MAX_TRANSFER as usize);
            let Ok(mut ring) = ring else { return Ok(()) };
            if ring.register().is_ok() { answer(&view, ring, &queue) } else { Ok(()) }
        });
        if let Ok(thread) = thread {
            self.more.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
    }
}
