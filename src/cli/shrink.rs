use super::Outcome;
use super::context::Context;
use super::failure;
use super::output::{self, Json};
use super::plan::Plan;
use super::progress::Bar;
use super::units::{count, size};
use crate::error::{Error, Kind};
use crate::ops::shrink::{Held, Shrunk, plan, shrink};
use crate::store::{Name, Store};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

/// Give back the host's space that clones take up and do not need.
///
/// Not needed is what the guest's filesystems have free, what is the same as in the base, and zeros. It is dropped, and the clone's
/// file is made as short as what is left. No file of the guest changes. A filesystem that is not understood is left whole, and
/// named. The clone must not be in use; a running guest gives space back by itself with fstrim.
///
/// It can be stopped at any moment, and run again.
#[derive(Args, Debug)]
pub(super) struct Shrink {
    /// Clones.
    #[arg(value_name = "CLONE", required_unless_present = "all", conflicts_with = "all")]
    clones: Vec<Name>,
    /// All clones.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    json: Json,
}

/// What came of all clones.
#[derive(Default)]
struct Sum {
    done: u64,
    failed: u64,
    before: u64,
    after: u64,
    gives_back: u64,
}

impl Shrink {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let bar = Bar::new()?;
        let store = context.store()?;
        let clones = if self.all {
            store.clones()?.into_iter().map(|clone| clone.name).collect()
        } else {
            self.clones.clone()
        };
        let (mut sum, mut reports, mut ended) = (Sum::default(), Vec::new(), Ok(()));
        for clone in &clones {
            match self.one(&store, clone, &bar) {
                Ok(done) => {
                    sum.add(&done);
                    if !self.json.json {
                        self.tell(&done)?;
                    }
                    reports.push(json!({ "clone": clone, "state": "done", "shrink": done }));
                }
                Err(error) if !self.all && clones.len() == 1 => return Err(error.into()),
                Err(error) if error.kind() == Kind::Interrupted => {
                    // What is done is told before what is not.
                    ended = Err(error);
                    break;
                }
                Err(error) => {
                    sum.failed += 1;
                    let state = if error.kind() == Kind::Busy { "running" } else { "failed" };
                    let error = failure::sentence(&error.into());
                    failure::write_line(&format!("{clone} is left as it is: {error}"));
                    reports.push(json!({ "clone": clone, "state": state, "error": error }));
                }
            }
        }
        if self.json.json {
            output::json(&reports)?;
        } else if clones.len() != 1 {
            output::line(sum.text(self.plan.plan))?;
        }
        ended?;
        Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn one(&self, store: &Store, clone: &Name, bar: &Bar) -> Result<Shrunk, Error> {
        bar.start(if self.plan.plan { format!("reading {clone}") } else { format!("shrinking {clone}") });
        let work = if self.plan.plan { plan } else { shrink };
        let done = work(store, clone, bar);
        bar.end();
        done
    }

    fn tell(&self, done: &Shrunk) -> anyhow::Result<()> {
        let Shrunk {
            clone, needless, gives_back_bytes, before, after, left, checkpoints, bounded_by, ..
        } = done;
        let reasons = [(needless.free, "free"), (needless.equal, "as below"), (needless.zero, "zeros")];
        let reasons: Vec<String> =
            reasons.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{} {word}", size(*n))).collect();
        let reasons = if reasons.is_empty() { "nothing is needless".to_owned() } else { reasons.join(", ") };
        output::line(match after {
            None => format!(
                "{clone}: {} of {} on the host would be given back ({reasons})",
                size(*gives_back_bytes),
                size(before.host_bytes)
            ),
            Some(after) => format!(
                "{clone}: {} -> {} on the host, file {} -> {} ({reasons})",
                size(before.host_bytes),
                size(after.host_bytes),
                size(before.file_bytes),
                size(after.file_bytes)
            ),
        })?;
        for left in left {
            output::line(format!(
                "  {} ({} of its own) is left whole: {}",
                left.what,
                size(left.own_bytes),
                left.reason
            ))?;
        }
        for held in checkpoints {
            output::line(format!("  {}", told(clone, held)))?;
        }
        if let Some(why) = bounded_by {
            output::line(format!("  the file is longer than what it holds: {why}"))?;
        }
        Ok(())
    }
}

/// What is said of a checkpoint's share.
fn told(clone: &Name, held: &Held) -> String {
    let Held { number, bytes, gives_back_bytes, needed } = held;
    let holds = format!("checkpoint {number} holds {}", size(*bytes));
    let remove = format!("cowshed rm {clone} --checkpoint {number}");
    match (needed, gives_back_bytes) {
        (true, _) => format!("{holds}; several layers stand on it"),
        (false, None) => holds,
        (false, Some(0)) => format!("{holds}; what stands on it shows all of that"),
        (false, Some(back)) if back == bytes => format!("{holds}; {remove} gives it back"),
        (false, Some(back)) => format!("{holds}; {remove} gives back at least {}", size(*back)),
    }
}

impl Sum {
    fn add(&mut self, done: &Shrunk) {
        self.done += 1;
        self.before += done.before.host_bytes;
        self.after += done.after.unwrap_or(done.before).host_bytes;
        self.gives_back += done.gives_back_bytes;
    }

    fn text(&self, plan: bool) -> String {
        let clones = count(self.done, "clone");
        let mut text = if plan {
            format!(
                "{clones}: {} of {} on the host would be given back",
                size(self.gives_back),
                size(self.before)
            )
        } else {
            format!("{clones}: {} -> {} on the host", size(self.before), size(self.after))
        };
        if self.failed > 0 {
            text.push_str(&format!(", {} left as they are", self.failed));
        }
        text
    }
}
