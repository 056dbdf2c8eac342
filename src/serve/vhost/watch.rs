//! Who looks after a queue: each of its threads looks for requests, does one, or sleeps.
//!
//! While a thread looks, the driver is asked for no kicks; the last one that goes to sleep asks for one. A thread at a request
//! does neither, for kicks cost more than most requests take: one that only dozes comes now and then to see what waits.

use super::memory::Memory;
use super::ring::{Nonsense, Places, Ring};
use std::time::{Duration, Instant};

/// A request that comes within this time comes soon: it took not much more than waking a thread does.
const SOON: Duration = Duration::from_micros(200);

/// A ring and its threads, under one lock.
#[derive(Debug)]
pub(super) struct Watch {
    ring: Ring,
    threads: usize,
    soon: Duration,
    looking: usize,
    working: usize,
    /// One of the sleepers dozes.
    dozing: bool,
    /// A sleeper was woken, and has not come yet.
    called: bool,
    /// When it was seen that no request was left.
    empty_since: Option<Instant>,
    /// Requests that were taken since one was waited for.
    taken: usize,
    /// The last one that was waited for came soon, and came alone.
    lone: bool,
}

/// A request that a thread has taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) head: u16,
    pub(super) places: Places,
    /// Nobody looks for what else there is: a sleeper is to be woken.
    pub(super) wake: bool,
}

/// What a thread does that has found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// It looks again, for a request has come meanwhile.
    None,
    /// It sleeps, but not for long.
    Doze,
    /// It sleeps until it is woken.
    Sleep,
}

impl Watch {
    pub(super) fn new(ring: Ring, threads: usize) -> Self {
        Self {
            ring,
            threads,
            soon: SOON,
            looking: 0,
            working: 0,
            dozing: false,
            called: false,
            empty_since: None,
            taken: 0,
            lone: false,
        }
    }

    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// A thread starts, or has had its `rest`: it looks now.
    pub(super) fn come(&mut self, memory: &Memory, rest: Rest) -> Result<(), Nonsense> {
        self.called = false;
        self.dozing &= rest != Rest::Doze;
        self.look(memory)
    }

    fn look(&mut self, memory: &Memory) -> Result<(), Nonsense> {
        self.looking += 1;
        self.ring.be_busy(memory)
    }

    /// A thread that looks takes the next request.
    pub(super) fn take(&mut self, memory: &Memory) -> Result<Option<Taken>, Nonsense> {
        let Some(head) = self.ring.pop(memory)? else {
            if self.empty_since.is_none() {
                self.empty_since = Some(Instant::now());
                self.lone &= self.taken == 1;
            }
            return Ok(None);
        };
        if let Some(since) = self.empty_since.take() {
            self.lone = since.elapsed() < self.soon;
            self.taken = 0;
        }
        self.taken += 1;
        self.looking -= 1;
        self.working += 1;
        let sleepers = self.threads - self.looking - self.working;
        let unseen = self.looking == 0 && sleepers > 0 && !self.called;
        let wake = unseen && (!self.dozing || self.ring.waiting(memory)? > 0);
        self.called |= wake;
        Ok(Some(Taken { head, places: self.ring.places(), wake }))
    }

    /// A thread gives back what it has taken, and looks again. Whether the driver is to be called.
    pub(super) fn give_back(&mut self, memory: &Memory, head: u16, written: u32) -> Result<bool, Nonsense> {
        self.working -= 1;
        // Before the driver has the answer: its next request needs no kick.
        self.look(memory)?;
        self.ring.push(memory, head, written)?;
        self.ring.wants_call(memory)
    }

    /// Whether a thread that has found nothing is to look for a moment more: requests come one at a time, soon after each other, and
    /// nobody else will look. Where several come together, looking would only break them up.
    pub(super) fn is_worth_it(&self) -> bool {
        self.lone && self.looking == 1 && self.working == 0
    }

    /// A thread that has found nothing wants its rest.
    pub(super) fn leave(&mut self, memory: &Memory) -> Result<Rest, Nonsense> {
        let rest = match (self.looking + self.working, self.dozing) {
            // Nobody else is awake.
            (1, _) if self.ring.rest(memory)? => {
                self.ring.be_busy(memory)?;
                return Ok(Rest::None);
            }
            (1, _) | (_, true) => Rest::Sleep,
            (_, false) => Rest::Doze,
        };
        self.looking -= 1;
        self.dozing |= rest == Rest::Doze;
        Ok(rest)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use vm_memory::{Bytes, GuestAddress};

    const SIZE: u16 = 8;
    const AVAILABLE: u64 = 0x100;
    const USED: u64 = 0x200;

    /// What a thread is at.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Thread {
        Rests(Rest),
        Looks,
        Works(u16),
    }

    /// A driver and a queue's threads, each of which takes a step when it is told to.
    struct Queue {
        memory: Memory,
        event_index: bool,
        watch: Watch,
        threads: Vec<Thread>,
        offered: u16,
        answered: u16,
        /// The driver has offered this many requests, and has not yet looked whether to kick.
        unlooked: u16,
        /// Kicks and wake-ups that no thread has got yet.
        events: usize,
    }

    impl Queue {
        fn new(threads: usize, event_index: bool) -> Self {
            let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
            let [table, available, used] = [0, AVAILABLE, USED].map(GuestAddress);
            let places = Places { size: SIZE, table, available, used };
            let ring = Ring::new(places, &memory, event_index, 0, None).unwrap();
            let watch = Watch::new(ring, threads);
            let threads = vec![Thread::Rests(Rest::Sleep); threads];
            // Each thread looks once when it starts.
            let events = threads.len();
            Self { memory, event_index, watch, threads, offered: 0, answered: 0, unlooked: 0, events }
        }

        fn load(&self, at: u64) -> u16 {
            self.memory.load(GuestAddress(at), Ordering::SeqCst).unwrap()
        }

        /// The driver's first step: requests are in the ring.
        fn offer(&mut self) {
            if self.unlooked == 0 && self.offered.wrapping_sub(self.answered) < SIZE {
                self.offered = self.offered.wrapping_add(1);
                self.memory.store(self.offered, GuestAddress(AVAILABLE + 2), Ordering::SeqCst).unwrap();
                self.unlooked = 1;
            }
        }

        /// Its second step: it kicks, if it was asked to.
        fn kick(&mut self) {
            let wanted = if self.event_index {
                let at = self.load(USED + 4 + 8 * u64::from(SIZE));
                self.offered.wrapping_sub(at).wrapping_sub(1) < self.unlooked
            } else {
                self.load(USED) & 1 == 0
            };
            self.events += usize::from(self.unlooked > 0 && wanted);
            self.unlooked = 0;
        }

        fn step(&mut self, number: usize, patient: bool) {
            let memory = &self.memory;
            self.threads[number] = match self.threads[number] {
                Thread::Rests(Rest::Sleep) if self.events == 0 => Thread::Rests(Rest::Sleep),
                Thread::Rests(rest) => {
                    // One event wakes one thread; several that nobody waits for may become one.
                    self.events = if patient { 0 } else { self.events.saturating_sub(1) };
                    self.watch.come(memory, rest).unwrap();
                    Thread::Looks
                }
                Thread::Looks => match self.watch.take(memory).unwrap() {
                    Some(taken) => {
                        self.events += usize::from(taken.wake);
                        Thread::Works(taken.head)
                    }
                    None if patient => Thread::Looks,
                    None => match self.watch.leave(memory).unwrap() {
                        Rest::None => Thread::Looks,
                        rest => Thread::Rests(rest),
                    },
                },
                Thread::Works(head) => {
                    self.watch.give_back(memory, head, 0).unwrap();
                    self.answered = self.answered.wrapping_add(1);
                    Thread::Looks
                }
            };
        }

        /// Whether a request waits, a thread sleeps, and nobody is going to wake it or to look.
        fn is_stuck(&self) -> bool {
            let waits = self.watch.ring().waiting(&self.memory).unwrap() > 0;
            let is = |what| self.threads.contains(&what);
            let seen = is(Thread::Looks) || is(Thread::Rests(Rest::Doze));
            waits && is(Thread::Rests(Rest::Sleep)) && !seen && self.events == 0 && self.unlooked == 0
        }
    }

    /// Random numbers from a seed (Knuth's constants).
    fn random(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*state >> 33).unwrap()
    }

    #[test]
    fn no_request_waits_while_a_thread_sleeps_that_nobody_wakes() {
        for seed in 0..2000 {
            let threads = 1 + seed % 4;
            let mut queue = Queue::new(threads, !seed.is_multiple_of(3));
            let mut state = u64::try_from(seed).unwrap();
            for step in 0..300 {
                let patient = random(&mut state) % 2 == 1;
                match random(&mut state) % 7 {
                    0 | 1 => queue.offer(),
                    2 => queue.kick(),
                    thread => queue.step((thread - 3) % threads, patient),
                }
                assert!(!queue.is_stuck(), "seed {seed}, step {step}: {:?}", queue.threads);
            }
            assert!(queue.answered > 5, "seed {seed}: requests get answers");
        }
    }

    #[test]
    fn requests_that_come_one_at_a_time_are_looked_for() {
        let mut queue = Queue::new(1, true);
        queue.watch.soon = Duration::MAX;
        queue.step(0, false);
        for (together, worth) in [(1, true), (1, true), (2, false), (1, true)] {
            queue.step(0, true);
            for _ in 0..together {
                queue.offer();
                queue.kick();
            }
            (0..2 * together).for_each(|_| queue.step(0, true));
            queue.step(0, true);
            assert_eq!(queue.watch.is_worth_it(), worth, "{together} together");
        }
        queue.watch.soon = Duration::ZERO;
        queue.offer();
        (0..3).for_each(|_| queue.step(0, true));
        assert!(!queue.watch.is_worth_it(), "it came late");
    }

    #[test]
    fn a_driver_is_asked_for_no_kick_while_a_thread_looks() {
        for event_index in [true, false] {
            let mut queue = Queue::new(2, event_index);
            queue.step(0, true);
            queue.offer();
            queue.kick();
            // The first request has the other thread woken, which finds nothing.
            (0..2).for_each(|_| queue.step(0, true));
            (0..2).for_each(|_| queue.step(1, false));
            assert_eq!(queue.threads, [Thread::Looks, Thread::Rests(Rest::Doze)]);
            for _ in 0..100 {
                queue.offer();
                queue.kick();
                queue.step(0, true);
                assert!(matches!(queue.threads[0], Thread::Works(_)), "the request is taken");
                queue.step(0, true);
            }
            assert_eq!(queue.events, 0, "nobody was kicked or woken");
        }
    }
}
