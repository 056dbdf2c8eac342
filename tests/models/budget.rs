//! More dirty slices than there is room for.

use crate::explore;
use crate::guest::{Guest, Start, at_once};

#[test]
fn writers_that_fill_the_budget_flush_for_each_other() {
    let start = Start::usual();
    explore("budget", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(Guest::cluster(0), 1);
                    guest.write(Guest::cluster(4), 1);
                    guest.write(Guest::cluster(8), 1);
                    guest.read(Guest::cluster(0), 1);
                },
                &|guest| {
                    guest.write(Guest::cluster(9), 1);
                    guest.write(Guest::cluster(5), 1);
                    guest.read(Guest::cluster(4), 1);
                },
            ],
        );
    });
}
