//! Loads a vhost-user-blk server as a guest would, and prints what came through as one line of JSON.
//!
//!   vhost_load SOCKET JOB BLOCK FROM TO QUEUES DEPTH SECONDS [plain]
//!
//! JOB is read or write, at random places of the disk between the bytes FROM and TO; with "plain" without in-flight
//! tracking, which not every server offers.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, dead_code, unreachable_pub, missing_docs)]

#[path = "../common/front.rs"]
mod front;
#[path = "../common/rng.rs"]
mod rng;

use front::{Driver, Front, Request, Wish};
use rng::Rng;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

struct Job {
    write: bool,
    block: usize,
    from: u64,
    blocks: u64,
    depth: usize,
    until: Instant,
}

impl Job {
    fn next(&self, rng: &mut Rng) -> Request {
        let sector = (self.from + rng.below(self.blocks) * self.block as u64) / 512;
        if self.write {
            // Never zeros, which would be no data; cheap to make.
            Request::write(sector, &vec![1 + rng.below(255) as u8; self.block])
        } else {
            Request::read(sector, self.block)
        }
    }

    /// Requests that were answered in time.
    fn run(&self, driver: &mut Driver, seed: u64) -> u64 {
        let mut rng = Rng::new(seed);
        driver.keeps_data = false;
        for _ in 0..self.depth {
            driver.send(&self.next(&mut rng));
        }
        let mut answered = 0;
        while Instant::now() < self.until {
            assert_eq!(driver.wait().status, 0);
            answered += 1;
            driver.send(&self.next(&mut rng));
        }
        while driver.pending() > 0 {
            driver.wait();
        }
        answered
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let (queues, seconds) = (number(5) as u16, number(7));
    let wish = Wish { inflight: words.len() < 9, ..Wish::queues(queues) };
    let (_front, mut drivers) = Front::new(UnixStream::connect(&words[0]).unwrap(), wish);
    let start = Instant::now();
    let job = Job {
        write: words[1] == "write",
        block: number(2) as usize,
        from: number(3),
        blocks: (number(4) - number(3)) / number(2),
        depth: number(6) as usize,
        until: start + Duration::from_secs(seconds),
    };
    let answered: u64 = std::thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> = drivers
            .iter_mut()
            .enumerate()
            .map(|(seed, driver)| scope.spawn(move || job.run(driver, seed as u64)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{{\"iops\": {}}}", answered / seconds);
}
