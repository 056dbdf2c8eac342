//! A host that fails at any change of any command: one sentence, the store as before or as after, nothing half-made.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common {
    pub mod commands;
    pub mod journal;
    pub mod shown;
    pub mod store;
    pub mod world;
}

use common::commands::{Case, Place, all};
use common::journal::Faulty;
use common::shown::{Built, say};
use cowshed::{Error, Kind};

/// What a user is told: one line, with the cause, and of the kind that the host's error has. After a failed sync of an image
/// data are lost, whatever the reason: that is never told as a lack of space, which could be waited for.
fn is_one_sentence(error: &Error, errno: i32, failed_sync: bool) -> Result<(), String> {
    let said = say("", error);
    let kinds: &[Kind] = match errno {
        libc::ENOSPC if failed_sync => &[Kind::NoSpace, Kind::Io, Kind::Latched],
        libc::ENOSPC => &[Kind::NoSpace],
        _ => &[Kind::Io, Kind::Latched],
    };
    let cause = std::io::Error::from_raw_os_error(errno).to_string();
    if said.chars().any(char::is_control) || !said.contains(&cause) || !kinds.contains(&error.kind()) {
        return Err(format!("it says {said:?}, kind {:?}", error.kind()));
    }
    Ok(())
}

/// Runs the command on a host that fails at its n-th change; whether there is such a change.
fn fails_at(case: &Case, number: usize, errno: i32, lasting: bool) -> Result<bool, String> {
    let built = Built::of(&case.start);
    let host = Faulty::new(number, errno, lasting);
    let result = (case.command.run)(&Place::watched(built.path(), host.clone()));
    let failed = host.failed();
    let Some(first) = failed.first() else { return Ok(false) };
    let what = |said: String| format!("{first} failed: {said}");
    match &result {
        Ok(()) if host.failed_sync() => {
            return Err(what("a failed sync was reported as a success".to_owned()));
        }
        Ok(()) => {}
        Err(error) => is_one_sentence(error, errno, host.failed_sync()).map_err(what)?,
    }
    case.judge(built.path(), result.is_ok()).map_err(what)?;
    Ok(true)
}

/// Plays a failure at each change of each command: one that passes and one that lasts take turns, unless `both` are wanted
/// everywhere. What passes with one error lasts with the other one.
fn endures(errno: i32, both: bool) {
    let mut faults = 0;
    for command in all() {
        let case = Case::new(command, &command.start());
        for number in 0_usize.. {
            let turn = number.is_multiple_of(2) == (errno == libc::EIO);
            let played = [false, true].into_iter().filter(|lasting| both || *lasting == turn);
            let mut failed = false;
            for lasting in played {
                let result = fails_at(&case, number, errno, lasting);
                let place = format!("{}, error {errno} at change {number}, lasting: {lasting}", command.name);
                failed |= result.unwrap_or_else(|error| panic!("{place}: {error}"));
                faults += usize::from(failed);
            }
            if !failed {
                break;
            }
        }
    }
    println!("{faults} faults");
    assert!(faults > 500, "only {faults} faults");
}

#[test]
fn every_command_endures_a_disk_that_fails() {
    endures(libc::EIO, false);
}

#[test]
fn every_command_endures_a_full_disk() {
    endures(libc::ENOSPC, false);
}

#[test]
#[ignore = "soak"]
fn soak_every_command_endures_failures_that_pass_and_that_last() {
    endures(libc::EIO, true);
    endures(libc::ENOSPC, true);
}
