//! Which of all clones are meant, and how many are worked on at a time.

use crate::store;
use clap::Args;
use globset::{Glob, GlobMatcher};

/// `--only` and `--jobs`, for commands that have `--all`.
#[derive(Args, Clone, Debug)]
pub(super) struct Fleet {
    /// Of those only the ones whose name matches a pattern (web-*), or that have a label (KEY=VALUE); may be given
    /// several times, and then any of them counts.
    #[arg(long, value_name = "PATTERN", requires = "all")]
    pub(super) only: Vec<Only>,
    /// Clones at a time [default: one for every two processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

impl Fleet {
    /// How many clones are worked on at a time.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.map_or_else(|| rayon::current_num_threads().div_ceil(2), usize::from)
    }
}

/// A pattern for names, or a label.
#[derive(Clone, Debug)]
pub(super) struct Only {
    /// As it was given.
    pub(super) text: String,
    is: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Name(GlobMatcher),
    Label(String, String),
}

impl std::str::FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is = match text.split_once('=') {
            Some((key, value)) => Kind::Label(key.to_owned(), value.to_owned()),
            None => {
                let glob = Glob::new(text).map_err(|error| error.to_string())?;
                Kind::Name(glob.compile_matcher())
            }
        };
        Ok(Self { text: text.to_owned(), is })
    }
}

impl Only {
    /// Whether a clone is one of them.
    pub(super) fn is(&self, clone: &store::Clone) -> bool {
        match &self.is {
            Kind::Name(glob) => glob.is_match(clone.name.as_str()),
            Kind::Label(key, value) => clone.labels.get(key) == Some(value),
        }
    }

    /// Whether a clone is one of those that any of `all` names; without any, each is.
    pub(super) fn means(all: &[Self], clone: &store::Clone) -> bool {
        all.is_empty() || all.iter().any(|only| only.is(clone))
    }

    /// Texts that were patterns before.
    pub(super) fn parse_all(texts: &[String]) -> anyhow::Result<Vec<Self>> {
        texts.iter().map(|text| text.parse().map_err(anyhow::Error::msg)).collect()
    }
}
