//! Turns SIGINT, SIGTERM and SIGHUP into a count that a supervising loop looks at.
//!
//! A handler rather than a blocked mask: other threads of the process (a view's servers) exist
//! already and would take a blocked signal's default action.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use parking_lot::Mutex;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);
const WATCHED: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The former actions, while at least one watch lives.
static INSTALLED: Mutex<Installed> = Mutex::new(Installed { watches: 0, former: Vec::new() });

struct Installed {
    watches: usize,
    former: Vec<(Signal, SigAction)>,
}

extern "C" fn note(signal: libc::c_int) {
    // Atomic stores only: nothing else is safe in a handler.
    LAST.store(signal, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Release);
}

/// While it lives, the three signals are counted and do nothing else. Several may live at once;
/// each sees every signal.
#[derive(Debug)]
pub struct SignalWatch {
    seen: usize,
}

impl SignalWatch {
    /// Begins to count.
    ///
    /// # Errors
    /// When the host refuses a handler; then nothing is changed.
    pub fn install() -> io::Result<Self> {
        let mut installed = INSTALLED.lock();
        if installed.watches == 0 {
            let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
            for signal in WATCHED {
                // SAFETY: the handler only touches atomics, and it stays valid for the life of
                // the program.
                match unsafe { sigaction(signal, &action) } {
                    Ok(former) => installed.former.push((signal, former)),
                    Err(error) => {
                        restore(&mut installed);
                        return Err(error.into());
                    }
                }
            }
        }
        installed.watches += 1;
        Ok(Self { seen: COUNT.load(Ordering::Acquire) })
    }

    /// Whether [`SignalWatch::take`] would give a signal.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        COUNT.load(Ordering::Acquire) != self.seen
    }

    /// The last signal's number, if one came since the last call.
    pub fn take(&mut self) -> Option<i32> {
        let count = COUNT.load(Ordering::Acquire);
        if count == self.seen {
            return None;
        }
        self.seen = count;
        Some(LAST.load(Ordering::Relaxed))
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        let mut installed = INSTALLED.lock();
        installed.watches -= 1;
        if installed.watches == 0 {
            restore(&mut installed);
        }
    }
}

fn restore(installed: &mut Installed) {
    for (signal, action) in installed.former.drain(..) {
        // SAFETY: puts back an action that was in force before.
        // The call cannot fail for a signal it has succeeded for.
        let _ = unsafe { sigaction(signal, &action) };
    }
}
