use super::Outcome;
use super::context::Context;
use super::output::{Json, Out};
use crate::ops::map::{MapExtent, map};
use crate::store::{Access, BaseRef};
use clap::Args;
use std::process::ExitCode;

/// Show where each part of a disk comes from.
///
/// Layer 0 is the clone's own file; the others are its checkpoints and base versions. The JSON is that of
/// `qemu-img map --output=json`.
#[derive(Args, Debug)]
pub(super) struct Map {
    /// Clone, or base as NAME or NAME@V.
    name: BaseRef,
    #[command(flatten)]
    json: Json,
}

impl Map {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let store = context.store()?;
        let open = store.open_target(&store.find(&self.name)?, Access::Inspect)?;
        let mut out = Out::new();
        // A map may be long, so it is written as it is found.
        if self.json.json {
            for (at, extent) in map(&open.disk, open.files()).enumerate() {
                out.write(if at == 0 { "[" } else { ",\n" })?;
                out.write(&serde_json::to_string(&extent?)?)?;
            }
            out.write(if open.disk.size() == 0 { "[]\n" } else { "]\n" })?;
        } else {
            out.write(&format!("{:>16} {:>16} {:<10} FROM\n", "START", "LENGTH", "KIND"))?;
            for extent in map(&open.disk, open.files()) {
                out.write(&row(&extent?))?;
            }
        }
        out.end()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn row(extent: &MapExtent) -> String {
    let kind = match extent {
        MapExtent { compressed: true, .. } => "compressed",
        MapExtent { data: true, .. } => "data",
        MapExtent { present: true, .. } => "zero",
        _ => "hole",
    };
    let file = extent.filename.iter().map(|file| format!(": {file}")).collect::<String>();
    let place = extent.offset.map(|offset| format!(" at {offset}")).unwrap_or_default();
    let from = if extent.present { format!("layer {}{file}{place}", extent.depth) } else { "-".to_owned() };
    format!("{:>16} {:>16} {kind:<10} {from}\n", extent.start, extent.length)
}
