//! A whole run of one machine, as `cowshed run` shows it to the user.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::accel::{self, Accel, Decision, Host};
use super::command::VmConfig;
use super::error::VmError;
use super::machine::{self, Drive, Machine, Started};
use super::qmp::Shutdown;
use super::signals::SignalWatch;

/// How often signals and keys are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The power button is pressed again at this interval: a guest that is still booting misses it.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// How long QEMU may take to close the disk once it is told to end.
const QUIT_LIMIT: Duration = Duration::from_secs(20);

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// Exit code for the process: QEMU's own (0 when the guest powered off), or 128 plus the
    /// signal's number when the machine had to be stopped against the guest's will or QEMU was
    /// killed.
    pub code: u8,
    /// The accelerator that was used.
    pub accel: Accel,
    /// What QEMU said about the end; `None` if it ended without a word.
    pub shutdown: Option<Shutdown>,
    /// The signal that ended QEMU against the guest's will: before it had started, or because
    /// the guest did not follow in time. What the guest had not flushed is lost.
    pub forced_by: Option<i32>,
}

/// Runs `disk` as a machine until it ends.
///
/// The first SIGINT, SIGTERM or SIGHUP presses the guest's power button; after `config.grace`, or
/// at the second one, QEMU is told to end; at the third it is killed. Sentences for the user go to
/// `notify`. A signal that `signals` has seen before QEMU answers ends the start. The machine never
/// outlives the call, nor the calling process.
///
/// # Errors
/// [`VmError`] when the machine cannot be started or supervised. A QEMU that ends by itself with
/// a failure is not an error here: its code is in [`VmExit::code`], its words are on stderr.
pub fn run(
    config: &VmConfig,
    disk: &Drive<'_>,
    signals: &mut SignalWatch,
    notify: &dyn Fn(&str),
) -> Result<VmExit, VmError> {
    machine::check_files(config, disk)?;
    let decision = accel::choose(config.accel, &Host::probe())?;
    if let Some(note) = &decision.note {
        notify(note);
    }
    let (started, accel) = start(config, disk, &decision, signals, notify)?;
    match started {
        Started::Running(machine) => Session {
            machine,
            signals,
            grace: config.grace,
            notify,
            stage: Stage::Running,
            asked_by: libc::SIGINT,
        }
        .supervise(accel),
        Started::Ended(status) => {
            Ok(VmExit { code: code_of(status), accel, shutdown: None, forced_by: None })
        }
        Started::GivenUp => {
            let signal = signals.take().unwrap_or(libc::SIGINT);
            Ok(VmExit { code: signal_code(signal), accel, shutdown: None, forced_by: Some(signal) })
        }
    }
}

/// Starts with the decided accelerator; falls back to TCG if KVM was chosen for the user and
/// QEMU does not get past its start on it.
fn start(
    config: &VmConfig,
    disk: &Drive<'_>,
    decision: &Decision,
    signals: &SignalWatch,
    notify: &dyn Fn(&str),
) -> Result<(Started, Accel), VmError> {
    let give_up = || signals.is_pending();
    if give_up() {
        return Ok((Started::GivenUp, decision.accel));
    }
    let started = Machine::start_unless(config, disk, decision.accel, &give_up)?;
    match started {
        Started::Ended(status) if decision.may_fall_back && !status.success() => {
            notify("running without KVM, which is slower: QEMU did not get past its start with it");
            Ok((Machine::start_unless(config, disk, Accel::Tcg, &give_up)?, Accel::Tcg))
        }
        started => Ok((started, decision.accel)),
    }
}

/// How far the end of the machine has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// `until` is `None` for a limit beyond what the host's clock can show.
    PoweringDown {
        until: Option<Instant>,
        press_at: Instant,
    },
    Quitting {
        until: Instant,
    },
    Killed,
}

struct Session<'a> {
    machine: Box<Machine>,
    signals: &'a mut SignalWatch,
    grace: Duration,
    notify: &'a dyn Fn(&str),
    stage: Stage,
    asked_by: i32,
}

impl Session<'_> {
    fn supervise(mut self, accel: Accel) -> Result<VmExit, VmError> {
        let status = loop {
            if let Some(status) = self.machine.wait_for(TICK)? {
                break status;
            }
            if self.machine.take_console_quit() {
                self.quit();
            }
            if let Some(signal) = self.signals.take() {
                self.asked_by = signal;
                self.escalate();
            }
            self.keep_time();
        };
        let shutdown = self.machine.shutdown().cloned();
        // A guest that was quicker than the request to end is not a forced end.
        let forced = matches!(self.stage, Stage::Quitting { .. } | Stage::Killed)
            && !shutdown.as_ref().is_some_and(|end| end.guest);
        let forced_by = forced.then_some(self.asked_by);
        Ok(VmExit {
            code: forced_by.map_or_else(|| code_of(status), signal_code),
            accel,
            shutdown,
            forced_by,
        })
    }

    /// One step further towards the end.
    fn escalate(&mut self) {
        match self.stage {
            Stage::Running => self.power_down(),
            Stage::PoweringDown { .. } => self.quit(),
            Stage::Quitting { .. } | Stage::Killed => self.kill(),
        }
    }

    fn power_down(&mut self) {
        (self.notify)("powering the guest off; Ctrl-C again stops it at once");
        let now = Instant::now();
        self.machine.power_down();
        self.stage = Stage::PoweringDown { until: now.checked_add(self.grace), press_at: now + PRESS_AGAIN };
    }

    fn quit(&mut self) {
        self.machine.quit();
        self.stage = Stage::Quitting { until: Instant::now() + QUIT_LIMIT };
    }

    fn kill(&mut self) {
        self.machine.kill();
        self.stage = Stage::Killed;
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        match self.stage {
            Stage::PoweringDown { until: Some(until), .. } if now >= until => {
                let seconds = self.grace.as_secs();
                (self.notify)(&format!("the guest did not power off within {seconds} s; stopping it"));
                self.quit();
            }
            Stage::PoweringDown { until, press_at } if now >= press_at => {
                self.machine.power_down();
                self.stage = Stage::PoweringDown { until, press_at: now + PRESS_AGAIN };
            }
            Stage::Quitting { until } if now >= until => self.kill(),
            _ => {}
        }
    }
}

fn code_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => signal_code(signal),
        (None, None) => 1,
    }
}

/// The shell's convention.
fn signal_code(signal: i32) -> u8 {
    u8::try_from(signal.saturating_add(128)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_qemu_and_the_shell() {
        assert_eq!(code_of(ExitStatus::from_raw(0)), 0);
        assert_eq!(code_of(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code_of(ExitStatus::from_raw(libc::SIGKILL)), 137);
        assert_eq!(signal_code(libc::SIGINT), 130);
        assert_eq!(signal_code(i32::MAX), 1);
    }
}
