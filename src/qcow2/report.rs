//! What a check says.

/// Sentences kept in a report.
const MOST_SENTENCES: usize = 1000;

/// What [`super::check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Sentences, one for each damage; at most the first 1000.
    pub errors: Vec<String>,
    /// How many damages there are.
    pub error_count: u64,
    /// Host clusters that are counted as used more often than they are: lost space, no danger.
    pub leaks: u64,
    /// Guest clusters with bytes or a host cluster of their own.
    pub allocated_clusters: u64,
    /// Guest clusters that are compressed.
    pub compressed_clusters: u64,
    /// Guest clusters in all.
    pub total_clusters: u64,
    /// End of the used part of the file in bytes.
    pub image_end: u64,
}

impl CheckReport {
    pub(super) fn error(&mut self, sentence: impl Into<String>) {
        self.error_count += 1;
        if self.errors.len() < MOST_SENTENCES {
            self.errors.push(sentence.into());
        }
    }

    /// Whether nothing is wrong, leaks aside.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.error_count == 0
    }
}
