//! The same work on many things.

use super::Progress;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Does `work` on each of `items`, on `jobs` of them at a time. `each` is told what came of each, in the order in which they
/// end. Those that were not begun when the user stops the work are not told of.
pub(super) fn many<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    progress: &dyn Progress,
    work: impl Fn(&T) -> R + Sync,
    each: &mut dyn FnMut(&T, R),
) {
    let next = AtomicUsize::new(0);
    let (told, endings) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let (told, next, work) = (told.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if progress.cancelled() {
                        return;
                    }
                    // Nobody listens any more only when the caller has panicked.
                    let _ = told.send((item, work(item)));
                }
            });
        }
        drop(told);
        for (item, ending) in endings {
            each(item, ending);
        }
    });
}
