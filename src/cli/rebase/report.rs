//! The report of a rebase, for people and for programs.

use crate::ops::merge::unified::printable;
use crate::ops::merge::{Clash, Conflict, Side};
use anyhow::Context;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The file of a report.
pub(super) struct Report {
    file: File,
    path: PathBuf,
}

impl Report {
    /// Makes the file, or empties it.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes the reports of clones: JSON when the file's name says so, else text.
    pub(super) fn write(mut self, reports: &[Value]) -> anyhow::Result<()> {
        let is_json = self.path.extension().is_some_and(|end| end == "json");
        let text = if is_json { serde_json::to_string_pretty(reports)? } else { page(reports) };
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// A conflict in words.
pub(super) fn sentence(conflict: &Conflict) -> String {
    let what = match conflict.clash {
        Clash::Content => "both sides changed it",
        Clash::Added => "both sides added it",
        Clash::DeletedInClone => "the clone deleted it, the base changed it",
        Clash::DeletedInBase => "the base deleted it, the clone changed it",
        Clash::Moved => "both sides moved it",
        Clash::Metadata => "both sides changed what is said about it",
        Clash::Name => "two things have its name",
        Clash::Folder => "one side deleted the folder, the other put something into it",
        Clash::Database => "both sides changed the database",
        Clash::Package => "packages of both sides have it",
    };
    let mut text = format!("{}: {what}", String::from_utf8_lossy(&conflict.path));
    if !conflict.detail.is_empty() {
        let _ = write!(text, " ({})", conflict.detail);
    }
    match conflict.taken {
        Some(Side::Base) => text.push_str("; the base's is taken"),
        Some(Side::Clone) => text.push_str("; the clone's is taken"),
        None => {}
    }
    text
}

/// All of it as text.
fn page(reports: &[Value]) -> String {
    let mut page = String::new();
    for report in reports {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let _ = writeln!(page, "{}: {}", text(&report["clone"]), text(&report["state"]));
        if let Some(error) = report["error"].as_str() {
            let _ = writeln!(page, "  {}", printable(error));
        }
        let rebase = &report["rebase"];
        if rebase.is_object() {
            let base = |id: &Value| format!("{}@{}", text(&id["name"]), id["version"]);
            let _ = writeln!(page, "  {} -> {}", base(&rebase["from"]), base(&rebase["onto"]));
        }
        write_merge(&mut page, &rebase["merge"]);
        page.push('\n');
    }
    page
}

fn write_merge(page: &mut String, merge: &Value) {
    for conflict in merge["conflicts"].as_array().into_iter().flatten() {
        let _ = writeln!(page, "  conflict: {}", told(conflict));
        for line in conflict["diff"].as_str().unwrap_or_default().lines() {
            let _ = writeln!(page, "    {line}");
        }
    }
    for conflict in merge["volatile"].as_array().into_iter().flatten() {
        let _ = writeln!(page, "  changed by running: {}", told(conflict));
    }
    for (title, key) in [
        ("settled", "settled"),
        ("renumbered", "renumbered"),
        ("package", "packages"),
        ("broken dependency", "broken"),
        ("made again by the guest", "derived"),
        ("kept of the clone's", "kept"),
    ] {
        for text in merge[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let _ = writeln!(page, "  {title}: {}", printable(text).replace('\n', " "));
        }
    }
}

fn told(conflict: &Value) -> String {
    let text = |key: &str| conflict[key].as_str().unwrap_or_default().to_owned();
    let taken = match conflict["taken"].as_str() {
        Some(side) => format!("; the {side}'s is taken"),
        None => "; open".to_owned(),
    };
    let detail = if text("detail").is_empty() { String::new() } else { format!(" ({})", text("detail")) };
    printable(&format!("{}: {}{detail}{taken}", text("path"), text("clash"))).replace('\n', " ")
}
