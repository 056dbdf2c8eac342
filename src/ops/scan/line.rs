//! The order of a scan: chunks are begun and ended in the order of the disk, and worked on by all threads in between. Where
//! the end does no more than note what was found, no thread waits for its turn.

use crate::error::{Error, Kind, Result};
use crate::units::index;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;

/// Where chunks of the kind `J` come from, and where they end with what was found in them.
pub(super) struct Line<B, E, J, D> {
    begin: Mutex<Begin<B>>,
    end: Mutex<End<E, J, D>>,
    ended: Condvar,
    /// How many chunks that are done may wait for their turn.
    ahead: usize,
}

struct Begin<B> {
    begun: u64,
    /// Says what the next chunk is; nothing behind the last one.
    next: B,
}

struct End<E, J, D> {
    ended: u64,
    /// What is done with each chunk when all before it have ended.
    finish: E,
    /// What became of chunks that are done before their turn, the first place being that of the chunk whose turn it is.
    early: VecDeque<Option<Done<J, D>>>,
    /// The first failure, in the order of the disk: nothing is ended after it.
    failed: Option<Error>,
}

/// A chunk and what was found in it; nothing behind the last one.
type Done<J, D> = Result<Option<(J, D)>>;

/// A chunk that was begun and has not ended.
struct Place<'a, B, E, J, D> {
    line: &'a Line<B, E, J, D>,
    number: u64,
}

impl<B: Send, E: Send, J: Send, D: Send> Line<B, E, J, D> {
    /// With `ahead` chunks done before their turn at most, which then end with an empty state.
    pub(super) fn new(ahead: usize, next: B, finish: E) -> Self {
        let begin = Mutex::new(Begin { begun: 0, next });
        let end = End { ended: 0, finish, early: VecDeque::new(), failed: None };
        Self { begin, end: Mutex::new(end), ended: Condvar::new(), ahead }
    }

    /// Runs all chunks through `work`, which has a `state` of its own in each thread, on all threads of the pool.
    pub(super) fn run<S: Default>(self, work: impl Fn(&J, &mut S) -> Result<D> + Sync) -> Result<()>
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
    fn one<S: Default>(&self, work: &impl Fn(&J, &mut S) -> Result<D>, state: &mut S) -> bool
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
        let done = next.and_then(|job| job.map(|job| work(&job, state).map(|done| (job, done))).transpose());
        let go_on = matches!(done, Ok(Some(_)));
        let mut end = self.turn(place.number);
        if end.failed.is_some() {
            return false;
        }
        if end.ended == place.number {
            end.finish(done, state);
            end.finish_early::<S>();
            self.ended.notify_all();
        } else {
            end.keep(place.number, done);
        }
        std::mem::forget(place);
        go_on && end.failed.is_none()
    }

    /// Waits until so many of the chunks before this one have ended that it may be done.
    fn turn(&self, number: u64) -> MutexGuard<'_, End<E, J, D>> {
        let mut end = self.end.lock();
        // Those before it are in the hands of threads that run: none of them waits for this one.
        while end.failed.is_none() && index(number - end.ended) > self.ahead {
            self.ended.wait(&mut end);
        }
        end
    }
}

impl<E, J, D> End<E, J, D> {
    /// Ends the chunk whose turn it is.
    fn finish<S>(&mut self, done: Done<J, D>, state: &mut S)
    where
        E: FnMut(&J, D, &mut S) -> Result<()>,
    {
        let finished = done.and_then(|done| match done {
            Some((job, done)) => (self.finish)(&job, done, state),
            None => Ok(()),
        });
        self.failed = finished.err();
        self.ended += 1;
    }

    /// Ends those behind it that were done before their turn.
    fn finish_early<S: Default>(&mut self)
    where
        E: FnMut(&J, D, &mut S) -> Result<()>,
    {
        self.early.pop_front();
        while self.failed.is_none()
            && let Some(done) = self.early.front_mut().and_then(Option::take)
        {
            self.finish(done, &mut S::default());
            self.early.pop_front();
        }
    }

    fn keep(&mut self, number: u64, done: Done<J, D>) {
        let at = index(number - self.ended);
        while self.early.len() <= at {
            self.early.push_back(None);
        }
        self.early[at] = Some(done);
    }
}

impl<B, E, J, D> Drop for Place<'_, B, E, J, D> {
    fn drop(&mut self) {
        let early = || Error::new(Kind::Interrupted, "a thread of the work has ended early");
        self.line.end.lock().failed.get_or_insert_with(early);
        self.line.ended.notify_all();
    }
}
