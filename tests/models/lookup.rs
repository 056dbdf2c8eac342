//! Entries are found without a lock while slices come, change and are evicted.

use crate::explore;
use crate::guest::{Guest, Start, at_once};

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
