//! Threads for what waits, beside those that take requests. They come when they are needed, and go when they are not.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Most threads.
const MOST: usize = 16;
/// How long one without work stays.
const IDLE: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

/// The threads. Dropped, they finish what they have, and end.
#[derive(Default)]
pub(crate) struct Helpers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a job, or the end.
    called: Condvar,
    /// A thread has ended.
    gone: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    ending: bool,
}

impl Helpers {
    /// Gives a job to a thread that has none. When all are busy, it comes back: whoever has it does it.
    pub(crate) fn give(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Job> {
        let mut state = self.0.lock();
        if state.jobs.len() < state.idle {
            state.jobs.push_back(Box::new(job));
            self.0.called.notify_one();
            return Ok(());
        }
        if state.threads == MOST {
            return Err(Box::new(job));
        }
        let shared = self.0.clone();
        let spawned = thread::Builder::new().name("view-read".to_owned()).spawn(move || shared.work());
        if spawned.is_err() {
            return Err(Box::new(job));
        }
        state.threads += 1;
        state.idle += 1;
        state.jobs.push_back(Box::new(job));
        Ok(())
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ending = true;
        self.0.called.notify_all();
        while state.threads > 0 {
            state = self.0.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread, which is counted as idle when it begins. No job panics.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.idle -= 1;
                drop(state);
                job();
                state = self.lock();
                state.idle += 1;
                continue;
            }
            if state.ending {
                break;
            }
            let waited = self.called.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.idle -= 1;
        state.threads -= 1;
        drop(state);
        self.gone.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    #[test]
    fn as_many_jobs_run_at_once_as_there_may_be_threads_and_one_more_comes_back() {
        let helpers = Helpers::default();
        let (go, wait) = channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let (done, ends) = channel();
        for number in 0..MOST {
            let (wait, done) = (wait.clone(), done.clone());
            let given = helpers.give(move || {
                // Whoever holds the lock waits for a word, the others for the lock.
                let _ = wait.lock().map(|wait| wait.recv());
                let _ = done.send(number);
            });
            assert!(given.is_ok());
        }
        assert!(helpers.give(|| ()).is_err());
        drop(go);
        let mut numbers: Vec<usize> = ends.iter().take(MOST).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..MOST).collect::<Vec<_>>());
    }

    #[test]
    fn threads_go_when_nothing_comes_and_come_again() {
        let helpers = Helpers::default();
        let (done, ends) = channel();
        for _ in 0..2 {
            let done = done.clone();
            assert!(helpers.give(move || done.send(()).unwrap_or(())).is_ok());
            assert!(ends.recv().is_ok());
            let until = Instant::now() + 20 * IDLE;
            while helpers.0.lock().threads > 0 {
                assert!(Instant::now() < until, "a thread stays");
                thread::sleep(IDLE / 20);
            }
        }
    }

    #[test]
    fn what_was_given_is_done_before_the_end() {
        for _ in 0..200 {
            let helpers = Helpers::default();
            let (done, ends) = channel();
            let given = (0..4).filter(|_| {
                let done = done.clone();
                helpers.give(move || done.send(()).unwrap_or(())).is_ok()
            });
            let given = given.count();
            drop((helpers, done));
            assert_eq!(ends.iter().count(), given);
        }
    }
}
