use super::Outcome;
use super::context::Context;
use super::output::{self, Json};
use super::units::count;
use crate::store::{self, BaseRef, CloneOptions, Name};
use anyhow::Context as _;
use clap::Args;
use clap::error::ErrorKind;
use std::process::ExitCode;

/// Most clones that one command makes.
const MOST: u32 = 100_000;
/// Longest list of names that is printed for people.
const SHOWN: usize = 10;

/// Make clones of a base.
///
/// A clone is a writable disk that takes no space until it is written to. All of the clones are made, or none.
#[derive(Args, Debug)]
pub(super) struct Clone {
    /// Base as NAME (its newest version) or NAME@V.
    base: BaseRef,
    /// Names of the clones.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<Name>,
    /// Make NAME-1 to NAME-N of the one NAME given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    count: Option<u32>,
    /// Plain L2 tables, for tools that do not know extended ones (QEMU before 5.2, older libraries).
    #[arg(long)]
    compat: bool,
    /// A word of your own to keep with the clone; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    json: Json,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give it as KEY=VALUE")?;
    if key.is_empty() || text.chars().any(char::is_control) {
        return Err("the key must not be empty, and no control characters are allowed".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

impl Clone {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let names = self.all_names()?;
        let options = CloneOptions { compat: self.compat, labels: self.labels.into_iter().collect() };
        let clones = context.store()?.create_clones(&self.base, &names, &options)?;
        if self.json.json {
            output::json(&clones)?;
        } else {
            output::line(summary(&clones))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn all_names(&self) -> anyhow::Result<Vec<Name>> {
        let Some(count) = self.count else { return Ok(self.names.clone()) };
        let [prefix] = self.names.as_slice() else {
            let message =
                format!("--count makes numbered clones of one NAME, and {} are given", self.names.len());
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, message).into());
        };
        let name = |number: u32| format!("{prefix}-{number}").parse();
        (1..=count).map(name).collect::<Result<_, _>>().context("--count")
    }
}

fn summary(clones: &[store::Clone]) -> String {
    let (Some(first), Some(last)) = (clones.first(), clones.last()) else { return String::new() };
    let made = count(clones.len() as u64, "clone");
    let names = if clones.len() > SHOWN {
        format!("{} to {}", first.name, last.name)
    } else {
        clones.iter().map(|clone| clone.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    format!("{made} of {}: {names}", first.base)
}
