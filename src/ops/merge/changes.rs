//! How the lines of two texts match.

use similar::algorithms::{Capture, myers};
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longest text that is compared line by line, in bytes.
pub(super) const TEXT_MAX: usize = 4 << 20;
/// Most lines of such a text.
pub(super) const LINES_MAX: usize = 1 << 17;
/// Longest time that one comparison takes. What is not compared by then counts as changed, so that a merge of it is a
/// conflict; texts of people and programs take milliseconds.
const PATIENCE: Duration = Duration::from_millis(400);

/// Lines of one text in the place of lines of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Lines that go.
    pub(super) old: Range<usize>,
    /// Lines that come.
    pub(super) new: Range<usize>,
}

/// Whether the texts are matched from their beginnings or from their ends. Where lines repeat, the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Start,
    End,
}

/// Texts cut in lines, each line with its line feed. Equal lines have equal numbers.
pub(super) struct Lines<'a, const N: usize> {
    pub(super) lines: [Vec<&'a [u8]>; N],
    tokens: [Vec<u32>; N],
}

/// Why a text is not compared line by line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLines {
    /// It is no UTF-8, or holds a zero byte.
    NotText,
    /// It is longer than 4 MiB or has more than 131072 lines.
    TooLong,
}

impl<'a, const N: usize> Lines<'a, N> {
    pub(super) fn new(texts: [&'a [u8]; N]) -> Result<Self, NoLines> {
        for text in texts {
            fault(text).map_or(Ok(()), Err)?;
        }
        let mut numbers = HashMap::new();
        let lines = texts.map(|text| text.split_inclusive(|&byte| byte == b'\n').collect::<Vec<_>>());
        let tokens = std::array::from_fn(|which| {
            let number = |&line| {
                let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
                *numbers.entry(line).or_insert(next)
            };
            lines[which].iter().map(number).collect::<Vec<u32>>()
        });
        Ok(Self { lines, tokens })
    }

    /// The changes that lead from one text to another, ascending, no two of them touching.
    pub(super) fn changes(&self, old: usize, new: usize, from: From) -> Vec<Change> {
        let (old, new) = (&self.tokens[old], &self.tokens[new]);
        let found = match from {
            From::Start => compare(old, new),
            From::End => backwards(old, new),
        };
        if matches(&found, old, new) {
            return found;
        }
        vec![Change { old: 0..old.len(), new: 0..new.len() }]
    }

    /// For each line of a text, and for its end, the lines before it that the text has only once.
    pub(super) fn anchors(&self, text: usize) -> Vec<usize> {
        let tokens = &self.tokens[text];
        let mut times: HashMap<u32, usize> = HashMap::with_capacity(tokens.len());
        for token in tokens {
            *times.entry(*token).or_insert(0) += 1;
        }
        let single = tokens.iter().map(|token| usize::from(times.get(token) == Some(&1)));
        let sums = single.scan(0, |sum, one| {
            *sum += one;
            Some(*sum)
        });
        std::iter::once(0).chain(sums).collect()
    }

    /// The same changes, each with all the lines that it can slide over: a line added in the middle of equal lines
    /// may be any of them.
    pub(super) fn wide_changes(&self, old: usize, new: usize, from: From) -> Vec<Change> {
        widened(&self.changes(old, new, from), &self.tokens[old], &self.tokens[new])
    }
}

fn fault(text: &[u8]) -> Option<NoLines> {
    if text.len() > TEXT_MAX {
        return Some(NoLines::TooLong);
    }
    if text.contains(&0) || std::str::from_utf8(text).is_err() {
        return Some(NoLines::NotText);
    }
    let lines = text.iter().filter(|&&byte| byte == b'\n').count();
    (lines >= LINES_MAX).then_some(NoLines::TooLong)
}

/// Myers' algorithm, as far as it comes in time.
fn compare(old: &[u32], new: &[u32]) -> Vec<Change> {
    let mut found = Capture::new();
    let deadline = Some(Instant::now() + PATIENCE);
    // A capture takes everything; its error has no value.
    let _ = myers::diff_deadline(&mut found, old, 0..old.len(), new, 0..new.len(), deadline);
    let mut changes: Vec<Change> = Vec::new();
    for operation in found.into_ops() {
        let (kind, old, new) = operation.as_tag_tuple();
        match changes.last_mut() {
            _ if kind == similar::DiffTag::Equal => {}
            Some(last) if last.old.end == old.start && last.new.end == new.start => {
                (last.old.end, last.new.end) = (old.end, new.end);
            }
            _ => changes.push(Change { old, new }),
        }
    }
    changes
}

fn backwards(old: &[u32], new: &[u32]) -> Vec<Change> {
    let turned = |tokens: &[u32]| tokens.iter().rev().copied().collect::<Vec<_>>();
    let mut changes = compare(&turned(old), &turned(new));
    changes.reverse();
    for change in &mut changes {
        change.old = old.len() - change.old.end..old.len() - change.old.start;
        change.new = new.len() - change.new.end..new.len() - change.new.start;
    }
    changes
}

/// Whether everything outside of `changes` is equal: what a merge rests on is checked, not believed.
fn matches(changes: &[Change], old: &[u32], new: &[u32]) -> bool {
    let (mut at, mut to) = (0, 0);
    for change in changes {
        if old.get(at..change.old.start) != new.get(to..change.new.start) || change.old.start < at {
            return false;
        }
        (at, to) = (change.old.end, change.new.end);
    }
    old.get(at..).is_some() && old.get(at..) == new.get(to..)
}

fn widened(changes: &[Change], old: &[u32], new: &[u32]) -> Vec<Change> {
    let mut wide: Vec<Change> = Vec::with_capacity(changes.len());
    for (index, change) in changes.iter().enumerate() {
        let first = wide.last().map_or(0, |before| before.old.end);
        let end = changes.get(index + 1).map_or(old.len(), |after| after.old.start);
        let change = slid(change, old, new, first..end);
        match wide.last_mut() {
            Some(before) if before.old.end >= change.old.start => {
                (before.old.end, before.new.end) = (change.old.end, change.new.end);
            }
            _ => wide.push(change),
        }
    }
    wide
}

/// `change` with the lines of `room` that it can slide over; only what adds alone or removes alone can.
fn slid(change: &Change, old: &[u32], new: &[u32], room: Range<usize>) -> Change {
    let (lines, moved) = match (change.old.is_empty(), change.new.is_empty()) {
        (true, false) => (new, &change.new),
        (false, true) => (old, &change.old),
        _ => return change.clone(),
    };
    let up = (1..=change.old.start - room.start)
        .take_while(|step| lines[moved.start - step] == lines[moved.end - step])
        .count();
    let down = (0..room.end - change.old.end)
        .take_while(|step| lines[moved.start + step] == lines[moved.end + step])
        .count();
    Change {
        old: change.old.start - up..change.old.end + down,
        new: change.new.start - up..change.new.end + down,
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, From, Lines, NoLines};

    fn wide(old: &str, new: &str) -> Vec<Change> {
        Lines::new([old.as_bytes(), new.as_bytes()]).unwrap_or_else(|_| panic!()).wide_changes(
            0,
            1,
            From::Start,
        )
    }

    #[test]
    fn a_line_added_among_equal_lines_may_be_any_of_them() {
        assert_eq!(wide("a\nx\nx\nb\n", "a\nx\nx\nx\nb\n"), [Change { old: 1..3, new: 1..4 }]);
        assert_eq!(wide("a\nb\n", "a\nc\nb\n"), [Change { old: 1..1, new: 1..2 }]);
        assert_eq!(wide("x\nx\n", "x\n"), [Change { old: 0..2, new: 0..1 }]);
    }

    #[test]
    fn what_is_no_text_has_no_lines() {
        let said = |text: &[u8]| Lines::new([text]).err();
        assert_eq!(said(b"a\0b"), Some(NoLines::NotText));
        assert_eq!(said(b"\xff\n"), Some(NoLines::NotText));
        assert_eq!(said(&[b'\n'; 1 << 17]), Some(NoLines::TooLong));
        assert_eq!(said(&vec![b'x'; (4 << 20) + 1]), Some(NoLines::TooLong));
        assert_eq!(said(b""), None);
    }
}
