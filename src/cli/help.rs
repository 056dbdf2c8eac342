//! The overview that `cowshed --help` shows: commands in groups, and examples.

use clap::Command;
use std::fmt::Write;

/// All commands, by what they are for.
const GROUPS: [(&str, &[&str]); 8] = [
    ("Images", &["import", "export"]),
    ("Clones", &["clone", "rename", "rm"]),
    ("Look", &["list", "tree", "info", "du", "map", "diff", "path"]),
    ("Update", &["promote", "rebase", "undo", "gc"]),
    ("Space", &["shrink", "resize"]),
    ("Go back", &["checkpoint", "checkpoints", "restore"]),
    ("Trust", &["check", "verify"]),
    ("Use", &["mount", "umount", "run", "serve"]),
];
const REST: (&str, &[&str]) = ("Set up", &["completions", "man"]);

const EXAMPLES: &str = "\
Examples:
  cowshed import debian.qcow2 --name debian      store an image as the base debian@1
  cowshed clone debian web --count 3             make web-1, web-2 and web-3 over it
  cowshed mount /mnt/disks                       see each disk as a raw file
  cowshed run web-1                              boot a clone
  cowshed list                                   what there is, and what it costs
  cowshed import --update debian new.qcow2       debian@2, as a delta over debian@1
  cowshed rebase --all --onto debian@2           every clone has the update and keeps its own changes
  cowshed shrink --all                           the host gets back what no clone needs
";

/// `command` with its overview in groups.
pub(super) fn grouped(command: Command) -> Command {
    let text = overview(&command);
    command.override_usage("cowshed [--store DIR] COMMAND ...").help_template(format!(
        "{{about}}\n\nUsage: {{usage}}\n\n{text}\nOptions:\n{{options}}\n\n{EXAMPLES}\n\
         `cowshed COMMAND --help` tells all about a command."
    ))
}

fn overview(command: &Command) -> String {
    let mut text = String::new();
    for (title, names) in GROUPS.iter().chain([&REST]) {
        let _ = writeln!(text, "{title}:");
        for name in *names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {name:<12} {about}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_overview_names_every_command_with_one_short_line() {
        let command = Cli::command();
        let text = super::overview(&command);
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && about.len() < 80, "{}", sub.get_name());
            assert!(text.contains(&format!("  {:<12} {about}\n", sub.get_name())), "{}", sub.get_name());
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        crate::cli::command_line().debug_assert();
    }
}
