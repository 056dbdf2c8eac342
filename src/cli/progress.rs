//! Progress of a long job on the terminal, and Ctrl-C as its way to stop.

use super::interrupt;
use crate::ops::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
        Ok(Self { bar: bar(STYLE), stop })
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

/// A bar in the given style when standard error is a terminal; one that is never seen otherwise.
fn bar(style: &str) -> ProgressBar {
    let terminal = io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// What is being done, of which nobody can say how long it takes.
pub(super) fn spinner(message: String) -> ProgressBar {
    let bar = bar("{spinner} {msg}");
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Progress in clones, whatever the bytes of each: the jobs on them are told apart by nobody.
pub(super) struct Clones {
    pub(super) bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Clones {
    /// `verb` says what is done with them. Made before the work starts threads.
    pub(super) fn new(verb: &str) -> io::Result<Self> {
        let stop = interrupt::flag()?;
        Ok(Self { bar: bar(&format!("{verb} {{bar:30}} {{pos}} of {{len}} clones, {{eta}}")), stop })
    }
}

impl Progress for Clones {
    fn total(&self, _: u64) {}

    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Acquire)
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
