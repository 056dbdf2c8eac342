use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::plan::Plan;
use super::progress::Bar;
use super::units::size;
use crate::ops::resize::{Changed, ResizeRequest, Resized, Size, plan, resize};
use crate::store::BaseRef;
use clap::Args;
use std::process::ExitCode;

/// Make a clone's disk smaller or larger, with the filesystem in it.
///
/// What lies last on the disk changes its end: an ext2, ext3 or ext4 filesystem, in a partition of a GPT or an MBR, or
/// without any. Nothing in use is ever cut: what is in the way is named, and nothing is changed. The state from before
/// becomes a checkpoint, and `cowshed undo CLONE` goes back to it. With --no-undo it does not, and what was cut is the host's at once.
/// Needs e2fsprogs and FUSE; the clone must not be open anywhere.
#[derive(Args, Debug)]
pub(super) struct Resize {
    /// The clone.
    clone: BaseRef,
    /// The new size: bytes, or a number with K, M, G or T (12G); +10G is more, -5G less.
    #[arg(
        allow_hyphen_values = true,
        required_unless_present_any = ["minimum", "plan"],
        conflicts_with = "minimum"
    )]
    size: Option<Size>,
    /// Make the disk as small as its content allows.
    #[arg(long)]
    minimum: bool,
    /// Leave partition and filesystem of a larger disk to the guest, and change nothing of its content.
    #[arg(long)]
    image_only: bool,
    /// Keep no checkpoint of the state from before: only this gives the host room back. --plan says how much is needed meanwhile.
    #[arg(long)]
    no_undo: bool,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

impl Resize {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let program = Context::program()?;
        let request = ResizeRequest {
            clone: self.clone,
            size: self.size.unwrap_or(Size::Least),
            image_only: self.image_only,
            no_undo: self.no_undo,
            program,
        };
        let run = if self.plan.plan { plan } else { resize };
        let done = run(&store, &request, &bar)?;
        bar.end();
        match self.json.json {
            true => output::json(&done)?,
            false => report(&done, self.plan.plan)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says what was done, or would be.
fn report(done: &Resized, planned: bool) -> anyhow::Result<()> {
    let Resized { clone, from, to, minimum, changed, note, checkpoint, needs_bytes, freed_bytes } = done;
    let mut lines = vec![match (from == to, planned) {
        (true, _) => format!("{clone}: {}, and stays so", size(*from)),
        (false, true) => format!("{clone}: {} -> {} ({to} bytes), not done", size(*from), size(*to)),
        (false, false) => format!("{clone}: {} -> {}", size(*from), size(*to)),
    }];
    if let Some(Changed { partition, content, from, to, .. }) = changed {
        let place = if *partition == 0 { "its disk".to_owned() } else { format!("partition {partition}") };
        lines.push(format!("  {place} ({content}): {} -> {}", size(*from), size(*to)));
    }
    if let Some(minimum) = minimum {
        let used = minimum.used.map(|used| format!(", {} in use", size(used))).unwrap_or_default();
        let bytes = minimum.bytes;
        lines.push(format!("  least: {} ({bytes} bytes), for {}{used}", size(bytes), minimum.bound_by));
    }
    lines.extend(note.iter().map(|note| format!("  {note}")));
    match (freed_bytes, needs_bytes) {
        (Some(freed), None) => lines.push(format!("  given back: {}", size(*freed))),
        (freed, Some(needs)) => {
            let gives = freed.map(|freed| format!("would give at least {} back; ", size(freed)));
            let needs = size(*needs);
            lines.push(format!(
                "  {}needs about {needs} meanwhile; cannot be undone",
                gives.unwrap_or_default()
            ));
        }
        (None, None) => {}
    }
    if checkpoint.is_some() {
        lines.push(format!("  undo with: cowshed undo {clone}"));
    }
    Ok(output::line(lines.join("\n"))?)
}
