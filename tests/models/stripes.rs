//! The striped locks: shared for bytes in place, exclusive for entries.

use crate::explore;
use crate::guest::{Guest, Start, at_once};

#[test]
fn requests_over_the_border_of_the_stripes_never_wait_in_a_circle() {
    let start = Start::usual();
    explore("wrap-around", move || {
        // Four stripes, three to a request: 2, 3, 0 and 0, 1, 2. A writer that waits keeps readers out.
        let over_the_border = |guest: &Guest| guest.read(Guest::cluster(2) + 31, 1 + 32 + 1);
        let behind_it = |guest: &Guest| guest.read(Guest::cluster(4) + 31, 1 + 32 + 1);
        let at_zero = |guest: &Guest| guest.write(Guest::cluster(4), 1);
        let at_two = |guest: &Guest| guest.write(Guest::cluster(6), 1);
        at_once(&start, &[&over_the_border, &behind_it, &at_zero, &at_two]);
    });
}

#[test]
fn writes_in_place_and_allocation_in_one_cluster_keep_out_of_each_other() {
    let start = Start::usual();
    explore("shared and exclusive", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(Guest::cluster(1), 2);
                    guest.write(Guest::cluster(1), 1);
                    guest.read(Guest::cluster(1), 4);
                },
                &|guest| {
                    guest.write(Guest::cluster(1) + 2, 1);
                    guest.write(Guest::cluster(1) + 2, 2);
                    guest.flush();
                },
                &|guest| guest.read(Guest::cluster(1), 4),
            ],
        );
    });
}
