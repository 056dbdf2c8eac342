use super::Outcome;
use super::context::Context;
use super::failure;
use super::output::{self, Json, Out};
use super::units::size;
use crate::store::{Base, Clone, Name, Overview, Usage};
use clap::Args;
use serde::Serialize;

/// Show bases, their versions, and the clones that stand on each.
#[derive(Args, Debug)]
pub(super) struct Tree {
    #[command(flatten)]
    json: Json,
}

#[derive(Serialize)]
struct BaseNode {
    name: Name,
    versions: Vec<VersionNode>,
}

#[derive(Serialize)]
struct VersionNode {
    version: u32,
    size: u64,
    own_bytes: u64,
    clones: Vec<CloneNode>,
}

#[derive(Serialize)]
struct CloneNode {
    name: Name,
    size: u64,
    own_bytes: u64,
}

impl Tree {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let overview = context.store()?.overview()?;
        let code = failure::say_broken(&overview.broken);
        let (bases, orphans) = grow(&overview);
        if self.json.json {
            output::json(&serde_json::json!({
                "bases": bases, "without_base": orphans, "broken": overview.broken
            }))?;
        } else {
            let mut out = Out::new();
            out.write(&bases.iter().map(draw).collect::<String>())?;
            for clone in &orphans {
                out.write(&format!("{} (its base is missing)\n", clone.name))?;
            }
            out.end()?;
        }
        Ok(code)
    }
}

/// The bases with all that stands on them, and the clones whose base version is not there.
fn grow(overview: &Overview) -> (Vec<BaseNode>, Vec<CloneNode>) {
    let mut bases: Vec<BaseNode> = Vec::new();
    let clones_of = |base: &Base| {
        let on = |clone: &Clone| clone.base.name == base.name && clone.base.version == base.version;
        overview.clones.iter().filter(|(clone, _)| on(clone)).map(clone_node).collect()
    };
    for (base, usage) in &overview.bases {
        let node = VersionNode {
            version: base.version,
            size: base.size,
            own_bytes: usage.own_bytes,
            clones: clones_of(base),
        };
        match bases.last_mut().filter(|last| last.name == base.name) {
            Some(last) => last.versions.push(node),
            None => bases.push(BaseNode { name: base.name.clone(), versions: vec![node] }),
        }
    }
    let is_there = |clone: &Clone| {
        let id = &clone.base;
        overview.bases.iter().any(|(base, _)| base.name == id.name && base.version == id.version)
    };
    let orphans = overview.clones.iter().filter(|(clone, _)| !is_there(clone)).map(clone_node).collect();
    (bases, orphans)
}

fn clone_node((clone, usage): &(Clone, Usage)) -> CloneNode {
    CloneNode { name: clone.name.clone(), size: clone.size, own_bytes: usage.own_bytes }
}

fn draw(base: &BaseNode) -> String {
    let mut text = format!("{}\n", base.name);
    for (at, version) in base.versions.iter().enumerate() {
        let (branch, below) = branch(at, base.versions.len());
        let costs = format!("{} of {}", size(version.own_bytes), size(version.size));
        text += &format!("{branch}@{}  {costs}\n", version.version);
        for (at, clone) in version.clones.iter().enumerate() {
            let (branch, _) = self::branch(at, version.clones.len());
            text += &format!("{below}{branch}{}  {}\n", clone.name, size(clone.own_bytes));
        }
    }
    text
}

/// What stands before child `at` of `count`, and before the lines below it.
fn branch(at: usize, count: usize) -> (&'static str, &'static str) {
    if at + 1 == count { ("└─ ", "   ") } else { ("├─ ", "│  ") }
}
