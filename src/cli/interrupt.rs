//! Ctrl-C and termination as something to ask for, not something that cuts a job in two.

use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The signals that ask a job or a server to end.
const ASKING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Calls `told` in a thread of its own at each signal that asks the process to end.
///
/// Called before any other thread starts: they inherit that the signals wait for this one. Children do not: the
/// standard library gives them an empty signal mask.
pub(super) fn on_request_to_end(mut told: impl FnMut() + Send + 'static) -> io::Result<()> {
    let signals: SigSet = ASKING.into_iter().collect();
    signals.thread_block()?;
    let wait = move || {
        while signals.wait().is_ok() {
            told();
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}

/// A flag that the first such signal raises; the second one ends the process at once.
pub(super) fn flag() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    on_request_to_end(move || {
        if raised.swap(true, Ordering::AcqRel) {
            exit(130);
        }
    })?;
    Ok(flag)
}
