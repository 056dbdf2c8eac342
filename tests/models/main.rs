//! Models of what several threads do to one image: the engine's real code over a medium in memory, under a scheduler that
//! plays thousands of orders and notices when all threads wait.
//!
//! `tests/tools/models.sh` builds and runs them. `COWSHED_SCHEDULES` is how many orders each model plays,
//! `COWSHED_SEED` draws others, and `COWSHED_SCHEDULE` plays the one that a failure printed (name one model then).
#![cfg(cowshed_model = "shuttle")]
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../common/rng.rs"]
mod rng;
#[path = "../common/store.rs"]
mod store;

mod allocation;
mod budget;
mod commits;
mod frees;
mod guest;
mod logs;
mod lookup;
mod medium;
mod snapshots;
mod stripes;
mod view;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Orders that each model plays.
const SCHEDULES: usize = 10_000;
/// How many times an order by priorities changes its mind.
const CHANGES: usize = 4;

/// Plays a model: half of the orders by chance at every point, half by priorities that change a few times.
pub fn explore(name: &str, model: impl Fn() + Send + Sync + Clone + 'static) {
    if let Ok(schedule) = std::env::var("COWSHED_SCHEDULE") {
        return shuttle::replay(model, &schedule);
    }
    let count = std::env::var("COWSHED_SCHEDULES").map_or(SCHEDULES, |text| text.parse().unwrap());
    let seed = rng::seed_from_environment().unwrap_or_else(rng::fresh_seed);
    println!("{name}: {count} schedules, seed {seed}; COWSHED_SEED={seed} plays them again");
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.silence_warnings = true;
    let chance = RandomScheduler::new_from_seed(seed, count - count / 2);
    Runner::new(chance, config.clone()).run(model.clone());
    Runner::new(PctScheduler::new_from_seed(seed, CHANGES, count / 2), config).run(model);
}
