//! Entries are found without a lock while slices come, change and are evicted.

use crate::explore;
use crate::guest::{Guest, Start, at_once, cut_beside};

#[test]
fn a_look_up_finds_what_was_published_while_slices_are_evicted() {
    let start = Start::usual();
    explore("look-up and eviction", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(Guest::cluster(0), 1);
                    guest.read(Guest::cluster(0), 1);
                    guest.write(Guest::cluster(4), 1);
                    guest.read(Guest::cluster(0), 1);
                },
                &|guest| {
                    // Each in another slice: only two have room.
                    guest.read(Guest::cluster(8), 1);
                    guest.read(Guest::cluster(4), 1);
                    guest.read(Guest::cluster(0), 1);
                },
                &|guest| {
                    guest.flush();
                    guest.read(Guest::cluster(11), 1);
                },
            ],
        );
    });
}

#[test]
fn an_entry_changes_while_its_slice_is_loaded_and_evicted_again() {
    let start = Start::usual();
    explore("reload", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(Guest::cluster(0), 1);
                    guest.flush();
                    guest.read(Guest::cluster(4), 1);
                    guest.read(Guest::cluster(8), 1);
                    guest.read(Guest::cluster(0), 1);
                },
                &|guest| {
                    guest.write(Guest::cluster(1), 1);
                    guest.flush();
                    guest.read(Guest::cluster(1), 1);
                },
            ],
        );
    });
}

#[test]
fn what_is_known_of_lower_layers_is_right_while_others_find_it_and_it_is_replaced() {
    // What is known of these clusters shares a place.
    let [first, second, third] = [0, 16, 32].map(Guest::cluster);
    let start = Start::clone_of(40, 14, true);
    explore("a deep chain", move || {
        cut_beside(
            Guest::deep(&start, &[first, second + 1, third + 31]),
            &[
                &|guest| {
                    guest.read(first, 3);
                    guest.read(second, 2);
                    guest.write(first + 1, 1);
                    guest.read(first, 2);
                },
                &|guest| {
                    guest.read(second + 1, 1);
                    guest.read(third + 30, 2);
                    guest.read(first, 1);
                },
                &|guest| {
                    guest.read(third, 1);
                    guest.discard(second, 1);
                    guest.read(second, 2);
                },
            ],
        );
    });
}
