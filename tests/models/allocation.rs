//! Writers that need host clusters at the same time.

use crate::explore;
use crate::guest::{Start, at_once};

/// Two sectors to a subcluster, so that each write copies one up from the base.
fn halves() -> Start {
    Start::clone_of(6, 15, true)
}

#[test]
fn two_writers_in_one_cluster_get_one_host_cluster_and_keep_each_others_bytes() {
    let start = halves();
    explore("one cluster", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(0, 1);
                    guest.write(3, 1);
                },
                &|guest| {
                    guest.write(1, 1);
                    guest.write(2, 1);
                },
                &|guest| {
                    guest.read(0, 4);
                    guest.flush();
                },
            ],
        );
    });
}

#[test]
fn writers_in_neighbouring_clusters_do_not_meet_in_the_file() {
    let start = halves();
    explore("neighbours", move || {
        at_once(
            &start,
            &[
                &|guest| guest.write(63, 2),
                &|guest| {
                    guest.write(65, 1);
                    guest.read(62, 6);
                },
                &|guest| {
                    guest.write(127, 2);
                    guest.flush();
                },
            ],
        );
    });
}

#[test]
fn writers_of_plain_clusters_copy_up_whole_ones() {
    let start = Start::clone_of(16, 9 + 2, false);
    explore("plain clusters", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(3, 2);
                    guest.flush();
                },
                &|guest| {
                    guest.write(0, 1);
                    guest.write(6, 1);
                },
                &|guest| guest.read(0, 8),
            ],
        );
    });
}
