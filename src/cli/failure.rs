//! From an error to one line on standard error and an exit code.

use crate::error::{Error, Kind};
use crate::store::Broken;
use clap::error::ErrorKind;
use std::io::{self, Write};
use std::process::ExitCode;

/// Wrong usage.
const USAGE: u8 = 2;
/// Ended by Ctrl-C, as shells count it: 128 and SIGINT's number.
pub(super) const INTERRUPTED: u8 = 130;

/// Says `error` and its causes in one line.
///
/// A closed standard output is no failure: `cowshed list | head` has all it wanted.
pub(super) fn say(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    // Some wrong usage is seen by the command itself.
    if let Some(error) = error.downcast_ref() {
        return usage(error);
    }
    write_line(&sentence(error));
    if is_interrupt(error) { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
}

/// The error with its causes, each said once.
pub(super) fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors of other libraries repeat their cause in their own words.
        if sentence.is_empty() {
            sentence = cause;
        } else if !sentence.ends_with(&cause) {
            sentence = format!("{sentence}: {cause}");
        }
    }
    sentence
}

/// Says what is left out of a report, one line each; the exit code that follows.
pub(super) fn say_broken(broken: &[Broken]) -> ExitCode {
    for Broken { kind, name, reason, .. } in broken {
        write_line(&format!("{kind} {name} is left out: {reason}"));
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says what is wrong with the arguments, or shows the help that they asked for.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed standard output is no failure here either.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            write_line(&usage_sentence(&error.render().to_string()));
            ExitCode::from(USAGE)
        }
    }
}

/// The first paragraph of clap's message in one line, with what the usage is.
fn usage_sentence(rendered: &str) -> String {
    let mut paragraphs = rendered.split("\n\n");
    let first = paragraphs.next().unwrap_or_default().trim_start_matches("error: ");
    let message = first.split_whitespace().collect::<Vec<_>>().join(" ");
    let usage = paragraphs.find_map(|paragraph| paragraph.trim().strip_prefix("Usage: "));
    match usage.and_then(|usage| usage.lines().next()) {
        Some(usage) => format!("{message} (usage: {usage})"),
        None => format!("{message} (try: cowshed --help)"),
    }
}

/// Writes one line; control characters, which file names and images may bring, are escaped.
pub(super) fn write_line(sentence: &str) {
    let mut line = String::from("cowshed: ");
    for c in sentence.trim_end().chars() {
        match c {
            '\n' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    // Standard error may be closed; there is nobody to tell then.
    let _ = writeln!(io::stderr(), "{line}");
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let found = error.chain().filter_map(|cause| cause.downcast_ref::<output_error::Stdout>()).next();
    found.is_some_and(|stdout| stdout.0.kind() == io::ErrorKind::BrokenPipe)
}

fn is_interrupt(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<Error>()).any(|e| e.kind() == Kind::Interrupted)
}

/// The error of writing to standard output, told apart from the same error of any other file.
pub(super) mod output_error {
    use std::io;

    /// Standard output cannot be written.
    #[derive(Debug, thiserror::Error)]
    #[error("standard output cannot be written: {0}")]
    pub(in crate::cli) struct Stdout(pub(in crate::cli) io::Error);
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_are_said_once_in_one_line() {
        let io = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = anyhow::Error::new(Error::io("a.qcow2 cannot be written", io));
        assert_eq!(sentence(&error), "a.qcow2 cannot be written: No space left on device (os error 28)");
        assert_eq!(sentence(&anyhow!("inner").context("outer: inner")), "outer: inner");
    }

    #[test]
    fn only_an_interrupted_job_counts_as_interrupted() {
        let interrupted = anyhow::Error::new(Error::new(Kind::Interrupted, "stopped"));
        assert!(is_interrupt(&interrupted.context("import")));
        assert!(!is_interrupt(&anyhow!("stopped")));
    }

    #[test]
    fn usage_errors_are_one_sentence_with_the_usage() {
        let rendered =
            "error: invalid value 'a/b' for '<NAME>': no\n\nUsage: cowshed path <NAME>\n\nFor more ...";
        assert_eq!(
            usage_sentence(rendered),
            "invalid value 'a/b' for '<NAME>': no (usage: cowshed path <NAME>)"
        );
    }
}
