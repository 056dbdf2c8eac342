//! The log: a process that dies at any point loses nothing that was acknowledged. A log has eight records here, so that
//! it is full soon.

use crate::explore;
use crate::guest::{Guest, Start, until_killed};
use crate::snapshots::with_snapshot;

#[test]
fn writes_beside_a_commit_are_in_the_log_or_in_the_image() {
    let start = Start::usual();
    explore("log and commit", move || {
        until_killed(
            &start,
            &|_| (),
            &[
                &|guest| {
                    guest.write(Guest::cluster(0), 1);
                    guest.write(Guest::cluster(5), 1);
                },
                &|guest| {
                    guest.write(Guest::cluster(0) + 1, 1);
                    guest.flush();
                    guest.write(Guest::cluster(0) + 2, 1);
                },
                &|guest| guest.flush(),
            ],
        );
    });
}

#[test]
fn a_log_that_is_full_forgets_nothing_that_is_needed() {
    let start = Start::usual();
    explore("a full log", move || {
        until_killed(
            &start,
            &|_| (),
            &[&|guest| (0..5).for_each(|sector| guest.write(Guest::cluster(0) + sector, 1)), &|guest| {
                (0..5).for_each(|sector| guest.write(Guest::cluster(5) + sector, 1))
            }],
        );
    });
}

#[test]
fn a_freed_cluster_is_nobody_elses_while_the_log_names_it() {
    let start = Start::usual();
    explore("log and freed clusters", move || {
        let first = |guest: &Guest| {
            guest.write(Guest::cluster(0), 2);
            guest.flush();
            guest.write(Guest::cluster(0) + 3, 1);
        };
        until_killed(
            &start,
            &first,
            &[
                &|guest| {
                    guest.discard(Guest::cluster(0), 32);
                    guest.flush();
                    guest.write(Guest::cluster(1), 1);
                },
                &|guest| guest.write(Guest::cluster(2), 1),
                &|guest| guest.flush(),
            ],
        );
    });
}

#[test]
fn a_log_is_taken_away_by_closing_and_made_again_by_the_next_change() {
    let start = Start::usual();
    explore("log and close", move || {
        until_killed(
            &start,
            &|guest| guest.write(Guest::cluster(0), 1),
            &[&|guest| guest.disk.close().unwrap(), &|guest| {
                guest.write(Guest::cluster(1), 1);
                guest.write(Guest::cluster(1) + 1, 1);
            }],
        );
    });
}

#[test]
fn a_table_that_is_copied_from_a_snapshots_is_in_the_log_too() {
    let start = with_snapshot();
    explore("log and tables", move || {
        until_killed(
            &start,
            &|_| (),
            &[
                &|guest| guest.write(Guest::cluster(0), 1),
                &|guest| guest.write(Guest::cluster(4), 1),
                &|guest| guest.flush(),
            ],
        );
    });
}
