//! The order of a scan: chunks are begun and ended in the order of the disk, and worked on by all threads in between.

use crate::error::{Error, Kind, Result};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// Where chunks come from, and where they end.
pub(super) struct Line<B, E> {
    begin: Mutex<Begin<B>>,
    end: Mutex<End<E>>,
    ended: Condvar,
}

struct Begin<B> {
    begun: u64,
    /// Says what the next chunk is; nothing behind the last one.
    next: B,
}

struct End<E> {
    ended: u64,
    /// What is done with each chunk when all before it have ended.
    finish: E,
    /// The first failure, in the order of the disk: nothing is ended after it.
    failed: Option<Error>,
}

/// A chunk that was begun and has not ended.
struct Place<'a, B, E> {
    line: &'a Line<B, E>,
    number: u64,
}

impl<B: Send, E: Send> Line<B, E> {
    pub(super) fn new(next: B, finish: E) -> Self {
        let begin = Mutex::new(Begin { begun: 0, next });
        Self { begin, end: Mutex::new(End { ended: 0, finish, failed: None }), ended: Condvar::new() }
    }

    /// Runs all chunks through `work`, which has a `state` of its own in each thread, on all threads of the pool.
    pub(super) fn run<J, D, S: Default>(self, work: impl Fn(&J, &mut S) -> Result<D> + Sync) -> Result<()>
    where
        B: FnMut() -> Result<Option<J>>,
        E: FnMut(&J, D, &mut S) -> Result<()>,
    {
        rayon::scope(|scope| {
            for _ in 0..rayon::current_num_threads().max(1) {
                scope.spawn(|_| {
                    let mut state = S::default();
                    while self.one(&work, &mut state) {}
                });
            }
        });
        self.end.into_inner().failed.map_or(Ok(()), Err)
    }

    /// The next chunk from its begin to its end; false when there is none.
    fn one<J, D, S>(&self, work: &impl Fn(&J, &mut S) -> Result<D>, state: &mut S) -> bool
    where
        B: FnMut() -> Result<Option<J>>,
        E: FnMut(&J, D, &mut S) -> Result<()>,
    {
        let mut begin = self.begin.lock();
        if self.end.lock().failed.is_some() {
            return false;
        }
        let place = Place { line: self, number: begin.begun };
        begin.begun += 1;
        let next = (begin.next)();
        drop(begin);
        let (job, done) = match next {
            Ok(None) => (None, Ok(None)),
            Ok(Some(job)) => {
                let done = work(&job, state).map(Some);
                (Some(job), done)
            }
            Err(error) => (None, Err(error)),
        };
        let mut end = place.turn();
        if end.failed.is_some() {
            return false;
        }
        let finished = done.and_then(|done| match job.as_ref().zip(done) {
            Some((job, done)) => (end.finish)(job, done, state),
            None => Ok(()),
        });
        end.failed = finished.err();
        end.failed.is_none() && job.is_some()
    }
}

impl<B, E> Drop for Place<'_, B, E> {
    fn drop(&mut self) {
        let mut end = self.line.end.lock();
        if end.ended == self.number && !std::thread::panicking() {
            end.ended += 1;
        } else {
            end.failed
                .get_or_insert_with(|| Error::new(Kind::Interrupted, "a thread of the work has ended early"));
        }
        self.line.ended.notify_all();
    }
}

impl<B, E> Place<'_, B, E> {
    /// Waits until all chunks before this one have ended.
    fn turn(&self) -> MutexGuard<'_, End<E>> {
        let mut end = self.line.end.lock();
        // Those before it are in the hands of threads that run: none of them waits for this one.
        while end.ended != self.number && end.failed.is_none() {
            self.line.ended.wait(&mut end);
        }
        end
    }
}
