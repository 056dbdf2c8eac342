//! Help, completions, manual pages, wrong usage, and stores that are none.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::{Shed, one_line, program};
use std::fs;
use std::process::{Command, Stdio};

const COMMANDS: [&str; 29] = [
    "import",
    "export",
    "clone",
    "rename",
    "rm",
    "list",
    "tree",
    "info",
    "map",
    "diff",
    "du",
    "path",
    "promote",
    "rebase",
    "undo",
    "checkpoint",
    "checkpoints",
    "restore",
    "gc",
    "shrink",
    "resize",
    "check",
    "verify",
    "mount",
    "umount",
    "run",
    "serve",
    "completions",
    "man",
];

#[test]
fn every_command_has_help_with_its_usage_and_options() {
    let overview = Shed::new().ok(&["--help"]);
    for command in COMMANDS {
        assert!(overview.lines().any(|line| line.starts_with(&format!("  {command} "))), "{command}");
        let output = program().args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{command}");
        assert!(help.contains(&format!("Usage: cowshed {command}")) && help.contains("--help"), "{help}");
        assert!(!help.contains("--background"), "an inner option is shown by {command}");
    }
    assert!(overview.contains("Examples:"));
}

#[test]
fn nothing_to_do_shows_the_overview_and_counts_as_wrong_usage() {
    let output = program().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Examples:"));
}

#[test]
fn the_version_is_told() {
    let output = program().arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        concat!("cowshed ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn wrong_usage_ends_with_2_and_one_line() {
    let shed = Shed::new();
    for arguments in [
        &["frobnicate"][..],
        &["list", "--frobnicate"],
        &["clone", "deb"],
        &["clone", "deb", "web", "--count", "0"],
        &["clone", "deb", "web", "--count", "many"],
        &["clone", "deb", "web", "--label", "nothing"],
        &["import", "a.raw"],
        &["import", "a.raw", "--name", "a", "--format", "floppy"],
        &["export", "a", "b", "--format", "vmdk"],
        &["restore", "a", "x"],
        &["check"],
        &["check", "a", "--all"],
        &["verify"],
        &["completions", "cmd"],
        &["run", "a", "--accel", "xen"],
        &["run", "a", "--memory", "0"],
        &["run", "a", "--cpus", "0"],
        &["run", "a", "--serial", "nowhere"],
        &["run", "a", "--ssh-port", "0"],
        &["run", "a", "--initrd", "x"],
        &["mount", "m", "--threads", "0"],
    ] {
        shed.fails(2, arguments);
    }
}

#[test]
fn names_that_are_none_are_refused_before_anything_happens() {
    let shed = Shed::with_base();
    let long = "x".repeat(300);
    let bad = [
        "",
        ".",
        "..",
        "a/b",
        "/etc/passwd",
        "../../x",
        ".hidden",
        "a b",
        "a\nb",
        "a\u{1b}[31m",
        "ä",
        "a\u{7f}",
        &long,
    ];
    for name in bad {
        for arguments in [
            &["clone", "deb", name][..],
            &["clone", name, "web"],
            &["import", "x", "--name", name],
            &["rename", "deb", name],
            &["rm", name],
            &["info", name],
            &["path", name],
            &["checkpoint", name],
            &["run", name],
        ] {
            let said = shed.fails(2, arguments);
            assert!(said.len() < 900, "{said}");
        }
    }
    for version in ["deb@0", "deb@", "deb@01", "deb@x", "deb@-1", "deb@99999999999"] {
        shed.fails(2, &["clone", version, "web"]);
    }
    assert_eq!(shed.json(&["list"])["clones"].as_array().unwrap().len(), 0);
    assert_eq!(fs::read_dir(shed.root().join("clones")).unwrap().count(), 0);
}

#[test]
fn a_missing_store_and_a_folder_that_is_none_are_refused() {
    let shed = Shed::new();
    let said = shed.fails(1, &["list"]);
    assert!(said.contains("there is no store at"), "{said}");
    assert!(!shed.root().exists(), "looking must not make a store");

    fs::create_dir(shed.root()).unwrap();
    fs::write(shed.root().join("letter.txt"), "mine").unwrap();
    let image = shed.image("deb.raw");
    for arguments in
        [&["list"][..], &["import", image.to_str().unwrap(), "--name", "deb"], &["check", "--all"]]
    {
        let said = shed.fails(1, arguments);
        assert!(said.contains("not a"), "{said}");
    }
    assert_eq!(fs::read_dir(shed.root()).unwrap().count(), 1, "nothing is added to a foreign folder");
}

#[test]
fn the_store_is_found_by_the_environment() {
    let shed = Shed::with_base();
    let output = program().env("COWSHED_STORE", shed.root()).args(["list", "--json"]).output().unwrap();
    assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("\"deb\""));

    let data = shed.path("data");
    let image = shed.image("b.raw");
    let output =
        program().env("XDG_DATA_HOME", &data).arg("import").arg(image).args(["--name", "b"]).output();
    assert!(output.unwrap().status.success());
    assert!(data.join("cowshed/cowshed.json").exists());
}

#[test]
fn things_that_are_not_there_are_said_in_one_line() {
    let shed = Shed::with_base();
    for arguments in [
        &["info", "nobody"][..],
        &["info", "deb@2"],
        &["map", "nobody"],
        &["path", "nobody"],
        &["clone", "nobody", "web"],
        &["clone", "deb@7", "web"],
        &["rename", "nobody", "somebody"],
        &["rm", "nobody"],
        &["rm", "deb@2"],
        &["check", "nobody"],
        &["check", "deb"],
        &["verify", "nobody"],
        &["verify", "deb@2"],
        &["checkpoint", "nobody"],
        &["checkpoints", "nobody"],
        &["restore", "nobody", "1"],
        &["export", "nobody", "out.raw"],
        &["run", "nobody"],
        &["run", "deb"],
        &["mount", "/nonexistent/dir"],
        &["umount", "/"],
        &["import", "/nonexistent/image", "--name", "x"],
        &["man", "/proc/nonexistent/dir"],
    ] {
        let said = shed.fails(1, arguments);
        assert!(said.len() > 20, "{said}");
    }
    assert!(!shed.path("out.raw").exists());
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web", "--count", "50"]);
    for arguments in [&["list"][..], &["list", "--json"], &["tree"], &["map", "web-1", "--json"], &["--help"]]
    {
        let mut child =
            shed.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{arguments:?}");
    }
}

#[test]
fn standard_output_that_cannot_be_written_is_a_failure() {
    let shed = Shed::with_base();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = shed.command(&["list"]).stdout(full).output().unwrap();
    let said = one_line(&output, 1, &["list"]);
    assert!(said.contains("standard output"), "{said}");
}

#[test]
fn completions_name_every_command() {
    let shed = Shed::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = shed.ok(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let script = shed.ok(&["completions", "bash"]);
    let path = shed.path("completions.bash");
    fs::write(&path, script).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&path).status().unwrap().success());
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let shed = Shed::new();
    let dir = shed.path("man");
    fs::create_dir(&dir).unwrap();
    shed.ok(&["man", dir.to_str().unwrap()]);
    assert!(fs::read_to_string(dir.join("cowshed.1")).unwrap().contains(".TH cowshed 1"));
    for command in COMMANDS {
        let page = fs::read_to_string(dir.join(format!("cowshed-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH DESCRIPTION"), "{command}");
    }
}

#[test]
fn an_interrupted_import_ends_with_130_and_leaves_nothing() {
    let shed = Shed::with_base();
    let image = shed.path("large.raw");
    // Much more than is copied in the moment between the start being seen and the signal.
    fs::write(&image, common::noise(256 << 20, 1)).unwrap();
    let arguments = ["import", image.to_str().unwrap(), "--name", "large"];
    let mut child = shed.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let tmp = shed.root().join("tmp");
    while fs::read_dir(&tmp).unwrap().count() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the import ended before it was seen to begin");
        std::thread::yield_now();
    }
    let process = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
    one_line(&child.wait_with_output().unwrap(), 130, &arguments);
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    assert_eq!(shed.json(&["list"])["bases"].as_array().unwrap().len(), 1);
}

#[test]
fn the_documentation_has_a_section_with_the_synopsis_of_every_command() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md")).unwrap();
    let sections: Vec<&str> = text.split("\n## ").skip(3).collect();
    let titles: Vec<&str> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
    assert_eq!(titles, COMMANDS);
    for (command, section) in COMMANDS.iter().zip(sections) {
        assert!(
            section.contains(&format!("`cowshed {command}")) && section.contains("\n    $ "),
            "{command}"
        );
        let help = String::from_utf8(program().args([command, "--help"]).output().unwrap().stdout).unwrap();
        let (_, options) = help.split_once("Options:").unwrap();
        for option in options.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2) {
            let option = option.split([',', ';', ':', '.', '[', ']', '=']).next().unwrap();
            let common = ["--help", "--store"].contains(&option);
            assert!(common || section.contains(option), "{command} {option} is not in docs/cli.md");
        }
    }
}
