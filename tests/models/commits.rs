//! Group commit: who flushes gets a commit that began after the call, and hears how it ended.

use crate::explore;
use crate::guest::{Guest, Start, at_once};
use crate::medium::SyncFault;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn whoever_flushes_gets_a_commit_that_began_after_the_call() {
    let start = Start::usual();
    explore("joiners", move || {
        let write_and_flush = |cluster| {
            move |guest: &Guest| {
                guest.write(Guest::cluster(cluster), 1);
                guest.flush();
            }
        };
        at_once(&start, &[&write_and_flush(0), &write_and_flush(1), &write_and_flush(5)]);
    });
}

#[test]
fn closing_beside_writers_and_flushes_takes_nothing_that_is_in_use() {
    let start = Start::usual();
    explore("close", move || {
        at_once(
            &start,
            &[
                &|guest| {
                    guest.write(Guest::cluster(0), 1);
                    guest.disk.close().unwrap();
                },
                &|guest| {
                    guest.write(Guest::cluster(1), 1);
                    guest.flush();
                    guest.write(Guest::cluster(2), 1);
                },
                &|guest| guest.disk.close().unwrap(),
            ],
        );
    });
}

/// Three threads write and flush while the `number`-th sync goes wrong; then the power is cut.
fn goes_wrong(start: &Start, fault: SyncFault) {
    let guest = Guest::new(start);
    guest.medium.set_fault(fault);
    let heard: Vec<bool> = shuttle::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|cluster| {
                let guest = &guest;
                scope.spawn(move || {
                    let work = || {
                        guest.try_write(Guest::cluster(cluster), 1)?;
                        guest.try_flush()
                    };
                    // A panic is one thread's own; nobody may wait for it.
                    !matches!(catch_unwind(AssertUnwindSafe(work)), Ok(Ok(())))
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert!(heard.contains(&true), "a failed commit reached nobody");
    let panics = matches!(fault, SyncFault::Panics(_));
    assert!(panics || guest.try_flush().is_err(), "a flush after a failed sync claims success");
    let cut = guest.cut();
    guest.assert_survived(cut);
}

#[test]
fn a_commit_that_fails_reaches_all_who_joined_it() {
    let start = Start::usual();
    explore("a failed commit", move || {
        (0..2).for_each(|number| goes_wrong(&start, SyncFault::Fails(number)))
    });
}

#[test]
fn a_commit_that_panics_leaves_nobody_waiting() {
    let start = Start::usual();
    explore("a panic in a commit", move || {
        (0..2).for_each(|number| goes_wrong(&start, SyncFault::Panics(number)));
    });
}
