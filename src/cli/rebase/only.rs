//! Which clones are meant.

use crate::store;
use globset::{Glob, GlobMatcher};

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
