//! Freed clusters and subclusters: who read the old ones never sees somebody else's bytes.

use crate::explore;
use crate::guest::{Guest, Start, after, at_once};

#[test]
fn a_freed_cluster_is_nobody_elses_before_its_removal_is_durable_and_its_readers_are_gone() {
    let start = Start::usual();
    explore("freed clusters", move || {
        let first = |guest: &Guest| {
            guest.write(Guest::cluster(0), 2);
            guest.flush();
        };
        let free_and_take = |guest: &Guest| {
            guest.discard(Guest::cluster(0), 32);
            guest.flush();
            // The first that may have the freed cluster.
            guest.write(Guest::cluster(1), 2);
        };
        let read = |guest: &Guest| {
            guest.read(Guest::cluster(0), 2);
            guest.read(Guest::cluster(1), 2);
        };
        let flush_and_take = |guest: &Guest| {
            guest.flush();
            guest.write(Guest::cluster(2), 2);
        };
        after(&start, &first, &[&free_and_take, &read, &flush_and_take]);
    });
}

#[test]
fn a_hole_is_punched_only_where_nothing_was_written_meanwhile() {
    let start = Start::usual();
    explore("late punches", move || {
        let discard_and_write = |guest: &Guest| {
            guest.discard(Guest::cluster(0) + 1, 2);
            guest.write(Guest::cluster(0) + 1, 1);
            guest.read(Guest::cluster(0), 4);
        };
        let flush = |guest: &Guest| guest.flush();
        after(&start, &|guest| guest.write(Guest::cluster(0), 4), &[&discard_and_write, &flush, &flush]);
    });
}

#[test]
fn a_hole_is_punched_only_when_what_shows_there_instead_is_durable() {
    let start = Start::usual();
    explore("punches under a base that shows", move || {
        let again = |guest: &Guest| {
            guest.uncover(Guest::cluster(0) + 1, 2);
            guest.write(Guest::cluster(0) + 1, 1);
            guest.uncover(Guest::cluster(0) + 1, 1);
            guest.read(Guest::cluster(0), 4);
        };
        let flush = |guest: &Guest| guest.flush();
        after(&start, &|guest| guest.write(Guest::cluster(0), 4), &[&again, &flush, &flush]);
    });
}

#[test]
fn discard_write_and_flush_may_come_in_any_order() {
    let start = Start::usual();
    explore("discard, write, flush", move || {
        let front = |guest: &Guest| {
            guest.write(Guest::cluster(0), 8);
            guest.discard(Guest::cluster(0), 8);
            guest.write(Guest::cluster(0) + 2, 2);
        };
        let back = |guest: &Guest| {
            guest.write(Guest::cluster(0) + 8, 2);
            guest.discard(Guest::cluster(0) + 8, 24);
            guest.flush();
        };
        let look = |guest: &Guest| {
            guest.flush();
            guest.read(Guest::cluster(0), 16);
        };
        at_once(&start, &[&front, &back, &look]);
    });
}
