//! Progress of a long job on the terminal, and Ctrl-C as its way to stop.

use super::interrupt;
use crate::ops::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const STYLE: &str = "{msg} {bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta}";

/// A bar on standard error when that is a terminal; nothing otherwise.
pub(super) struct Bar {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Bar {
    /// A bar for one job or several in a row. Made before the job starts threads.
    pub(super) fn new() -> io::Result<Self> {
        let stop = interrupt::flag()?;
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template(STYLE) {
            bar.set_style(style);
        }
        Ok(Self { bar, stop })
    }

    /// Starts anew with `message` in front.
    pub(super) fn start(&self, message: String) {
        self.bar.reset();
        self.bar.set_message(message);
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}

impl Progress for Bar {
    fn total(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
