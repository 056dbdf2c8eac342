//! One test over a table of cases.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `test` over all `cases` on two threads, and fails with the names of those that failed, when all are done.
pub fn each_case<C: Sync, N: std::fmt::Display>(
    cases: &[C],
    name: impl Fn(&C) -> N + Sync,
    test: impl Fn(&C) + Sync,
) {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if catch_unwind(AssertUnwindSafe(|| test(case))).is_err() {
                        failed.lock().unwrap().push(name(case).to_string());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} cases fail: {failed:#?}", failed.len(), cases.len());
}
