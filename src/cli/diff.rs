use super::Outcome;
use super::context::Context;
use super::output::{self, Json, Out};
use super::progress::Bar;
use super::units::{count, size};
use crate::ops::diff::{
    BlockChange, Both, Change, ContentDifference, DiffRequest, Difference, FileSide, Mark, PlaceDifference,
    diff, diff_blocks, diff_content, shown,
};
use crate::ops::merge::unified::printable;
use crate::store::BaseRef;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// Show what differs between two disks, file by file.
///
/// One line for each path that differs, sorted, with what became of it on the way from OTHER to DISK:
/// A added, M other content, D deleted, R moved (`old -> new`), m only something else is another (mode, owner, xattrs,
/// flags, times). A moved folder is one line, and below it only what changed. What became another kind of file is
/// deleted and added. Names that a terminal or a reader could mistake are in quotes, with escapes.
///
/// Files of ext2, ext3 and ext4 are compared, as the guest would see them; other filesystems are compared as blocks,
/// and are one line. The exit code is 1 when an ext filesystem could not be read.
#[derive(Args, Debug)]
pub(super) struct Diff {
    /// Clone, or base as NAME or NAME@V: the disk that is looked at.
    #[arg(value_name = "DISK")]
    name: BaseRef,
    /// What it is compared with, a clone or a base [default: the base that the clone stands on].
    #[arg(value_name = "OTHER")]
    other: Option<BaseRef>,
    /// List the runs of the disks that differ, without looking inside.
    #[arg(long, conflicts_with = "content")]
    blocks: bool,
    /// Show what differs in one file: text line by line, else sizes and BLAKE3 digests. `pN:/PATH` says the partition.
    #[arg(long, value_name = "PATH", conflicts_with = "stat")]
    content: Option<OsString>,
    /// Only sums.
    #[arg(long)]
    stat: bool,
    #[command(flatten)]
    json: Json,
}

/// How many paths came to what.
#[derive(Default, Serialize)]
struct Sums {
    added: u64,
    added_bytes: u64,
    modified: u64,
    modified_bytes: u64,
    deleted: u64,
    deleted_bytes: u64,
    moved: u64,
    metadata: u64,
    /// Bytes of what was compared as blocks.
    block_bytes: u64,
}

impl Diff {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let other = self.other.as_ref().map(|other| store.find(other)).transpose()?;
        let request = DiffRequest { new: store.find(&self.name)?, old: other };
        bar.start(format!("comparing {}", request.new));
        if let Some(path) = &self.content {
            let found = diff_content(&store, &request, path.as_bytes(), &bar)?;
            bar.end();
            return self.tell_content(&found);
        }
        if self.blocks {
            let (disks, found) = diff_blocks(&store, &request, &bar)?;
            bar.end();
            return self.tell_blocks(&disks, &found);
        }
        let found = diff(&store, &request, &bar)?;
        bar.end();
        self.tell(&found)
    }

    fn tell(&self, found: &Difference) -> Outcome {
        let sums = Sums::of(found);
        if self.json.json {
            let mut value = serde_json::to_value(found)?;
            value["sums"] = serde_json::to_value(&sums)?;
            if self.stat {
                value["places"]
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                    .for_each(|place| place["changes"] = json!(null));
            }
            output::json(&value)?;
        } else {
            let mut out = Out::new();
            out.write(&notes(found))?;
            let files = found.places.iter().filter(|place| place.changes.is_some()).count();
            for place in &found.places {
                let prefix = if files > 1 { format!("p{}:", place.partition) } else { String::new() };
                for change in place.changes.iter().flatten().filter(|_| !self.stat) {
                    out.write(&line(change, &prefix))?;
                }
                out.write(&blocks_line(place, found))?;
            }
            if let Some(bytes) = found.outside_bytes.filter(|bytes| *bytes > 0) {
                out.write(&format!("outside of the partitions: {} differ\n", size(bytes)))?;
            }
            if self.stat {
                out.write(&sums.text())?;
            }
            out.end()?;
        }
        let unread = found.places.iter().any(|place| place.reason.is_some());
        Ok(if unread { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn tell_blocks(&self, disks: &Both<String>, found: &[BlockChange]) -> Outcome {
        let bytes =
            |zero: bool| found.iter().filter(|run| run.zero == zero).map(|run| run.length).sum::<u64>();
        let (data, zero, extents) = (bytes(false), bytes(true), found.len());
        if self.json.json {
            let runs = if self.stat { None } else { Some(found) };
            output::json(&json!({
                "disks": disks, "extents": runs,
                "sums": { "extents": extents, "data_bytes": data, "zero_bytes": zero },
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut out = Out::new();
        if self.stat {
            let extents = count(extents as u64, "extent");
            out.write(&format!("{extents}: {} data, {} zero\n", size(data), size(zero)))?;
        } else {
            out.write(&format!("{:>16} {:>16} KIND\n", "START", "LENGTH"))?;
            for run in found {
                let kind = if run.zero { "zero" } else { "data" };
                out.write(&format!("{:>16} {:>16} {kind}\n", run.start, run.length))?;
            }
        }
        out.end()?;
        Ok(ExitCode::SUCCESS)
    }

    fn tell_content(&self, found: &ContentDifference) -> Outcome {
        if self.json.json {
            output::json(found)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut out = Out::new();
        match &found.diff {
            // A pipe gets the bytes as they are: they may be a patch.
            Some(diff) if io::stdout().is_terminal() => out.write(&printable(diff))?,
            Some(diff) => out.write(diff)?,
            None if found.same => {}
            None => out.write(&format!(
                "no text: {} -> {}\n",
                facts(found.old.as_ref()),
                facts(found.new.as_ref())
            ))?,
        }
        out.end()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// One side of a file that is no text.
fn facts(side: Option<&FileSide>) -> String {
    let Some(side) = side else { return "absent".to_owned() };
    let digest = side.digest.iter().map(|digest| format!(", blake3 {digest}")).collect::<String>();
    format!("{} of {} bytes{digest}", side.kind, side.size)
}

/// What is not the same about the disks themselves.
fn notes(found: &Difference) -> String {
    let mut text = String::new();
    let Both { old, new } = found.sizes;
    if old != new {
        let _ = writeln!(text, "the disk's size: {} -> {}", size(old), size(new));
    }
    if found.layout_differs {
        text.push_str("the partitions lie elsewhere: those with the same number are compared\n");
    }
    text
}

fn line(change: &Change, prefix: &str) -> String {
    let path = |path: &[u8]| format!("{prefix}{}", shown(path));
    let mut text = format!("{} ", change.mark.letter());
    if let Some(from) = &change.from {
        let _ = write!(text, "{} -> ", path(from));
    }
    text.push_str(&path(&change.path));
    let words: Vec<&str> = change.changed.iter().map(|aspect| aspect.word()).collect();
    // That the content is another is what M says.
    let words = if change.mark == Mark::Modified { &words[1..] } else { &words[..] };
    if !words.is_empty() {
        let _ = write!(text, " ({})", words.join(", "));
    }
    text + "\n"
}

/// The line for what was not compared by files; nothing when nothing differs.
fn blocks_line(place: &PlaceDifference, found: &Difference) -> String {
    let name = if place.partition == 0 { "the disk".to_owned() } else { format!("p{}", place.partition) };
    let kind = match place.kinds {
        Both { old: Some(old), new: Some(new) } if old == new => old.to_owned(),
        Both { old: Some(old), new: Some(new) } => format!("{old} -> {new}"),
        Both { old: Some(kind), new: None } => {
            return format!("{name}: {kind}, only on {}\n", found.disks.old);
        }
        Both { old: None, new: Some(kind) } => {
            return format!("{name}: {kind}, only on {}\n", found.disks.new);
        }
        Both { old: None, new: None } => return String::new(),
    };
    let reason = place.reason.iter().map(|reason| format!("; files not compared: {}", printable(reason)));
    match place.differing_bytes {
        Some(0) if place.reason.is_none() => String::new(),
        Some(bytes) => format!("{name}: {kind}, {} differ{}\n", size(bytes), reason.collect::<String>()),
        None => String::new(),
    }
}

impl Sums {
    fn of(found: &Difference) -> Self {
        let mut sums = Self { block_bytes: found.outside_bytes.unwrap_or(0), ..Self::default() };
        for place in &found.places {
            sums.block_bytes += place.differing_bytes.unwrap_or(0);
            for change in place.changes.iter().flatten() {
                let (number, bytes) = match change.mark {
                    Mark::Added => (&mut sums.added, Some(&mut sums.added_bytes)),
                    Mark::Modified => (&mut sums.modified, Some(&mut sums.modified_bytes)),
                    Mark::Deleted => (&mut sums.deleted, Some(&mut sums.deleted_bytes)),
                    Mark::Moved => (&mut sums.moved, None),
                    Mark::Metadata => (&mut sums.metadata, None),
                };
                *number += 1;
                if let Some(bytes) = bytes {
                    *bytes = bytes.saturating_add(change.size);
                }
            }
        }
        sums
    }

    fn text(&self) -> String {
        let Self { added, modified, deleted, moved, metadata, .. } = self;
        let [a, m, d] = [self.added_bytes, self.modified_bytes, self.deleted_bytes].map(size);
        format!(
            "{added} added ({a}), {modified} modified ({m}), {deleted} deleted ({d}), {moved} moved, {metadata} with other metadata\n"
        )
    }
}
