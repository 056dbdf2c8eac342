//! Text, line by line, three ways.

use super::Three;
use super::changes::{Change, From, Lines, NoLines};
use std::ops::Range;

/// What became of a text that changed on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMerge {
    /// Both changes in one text.
    Merged(Vec<u8>),
    /// Places where both changed the same lines, or lines that touch. There is no text then: no marker of a conflict
    /// is ever written into one.
    Conflict(Vec<Overlap>),
    /// It is not merged line by line.
    No(NoLines),
}

/// Lines that both sides changed, differently, each counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Where they are in the three texts.
    pub lines: Three<Range<usize>>,
}

const OLD: usize = 0;
const BASE: usize = 1;
const CLONE: usize = 2;

/// Merges the changes that the new base and the clone made to a text.
///
/// Changes that touch are a conflict. Where lines repeat there is more than one way to match them: the texts are
/// matched from both ends, and a change counts for all lines that it could stand for, so that a merge never rests on
/// a lucky match. For the same reason a line that the old text has only once must lie between two changes that are
/// told apart.
///
/// Each text is UTF-8 without a zero byte, at most 4 MiB and 131072 lines; others are [`TextMerge::No`].
#[must_use]
pub fn merge_text(texts: Three<&[u8]>) -> TextMerge {
    let lines = match Lines::new([texts.old, texts.base, texts.clone]) {
        Ok(lines) => lines,
        Err(reason) => return TextMerge::No(reason),
    };
    let merged = [From::Start, From::End].map(|from| merge_from(&lines, from));
    match merged {
        [Ok(first), Ok(second)] if first == second => TextMerge::Merged(first),
        [Ok(_), Ok(_)] => TextMerge::Conflict(vec![Overlap {
            lines: Three {
                old: 0..lines.lines[OLD].len(),
                base: 0..lines.lines[BASE].len(),
                clone: 0..lines.lines[CLONE].len(),
            },
        }]),
        [Err(overlaps), _] | [_, Err(overlaps)] => TextMerge::Conflict(overlaps),
    }
}

fn merge_from(lines: &Lines<'_, 3>, from: From) -> Result<Vec<u8>, Vec<Overlap>> {
    let changes = [BASE, CLONE].map(|side| lines.wide_changes(OLD, side, from));
    let mut output = Vec::new();
    let mut overlaps = Vec::new();
    let mut kept = 0;
    let anchors = lines.anchors(OLD);
    for group in Groups::new([&changes[0], &changes[1]], &anchors) {
        copy(&mut output, &lines.lines[OLD][kept..group.old.start]);
        kept = group.old.end;
        let [base, clone] = [BASE, CLONE].map(|side| &lines.lines[side][group.new[side - 1].clone()]);
        match group.changed {
            [true, true] if base != clone => overlaps.push(group.overlap()),
            [true, false] => copy(&mut output, base),
            _ => copy(&mut output, clone),
        }
    }
    copy(&mut output, &lines.lines[OLD][kept..]);
    if overlaps.is_empty() { Ok(output) } else { Err(overlaps) }
}

fn copy(output: &mut Vec<u8>, lines: &[&[u8]]) {
    lines.iter().for_each(|line| output.extend_from_slice(line));
}

/// Lines of the old text that one or both sides changed, with what stands for them on each side.
struct Group {
    old: Range<usize>,
    new: [Range<usize>; 2],
    changed: [bool; 2],
}

impl Group {
    fn overlap(&self) -> Overlap {
        let [base, clone] = self.new.clone();
        Overlap { lines: Three { old: self.old.clone(), base, clone } }
    }
}

/// Changes of two sides, those that touch one another, or have no anchor between them, together.
struct Groups<'a> {
    left: [&'a [Change]; 2],
    /// Lines that each side has more than the old text (or less), up to here.
    shift: [isize; 2],
    /// Lines before each line of the old text that it has only once.
    anchors: &'a [usize],
}

impl<'a> Groups<'a> {
    fn new(changes: [&'a [Change]; 2], anchors: &'a [usize]) -> Self {
        Self { left: changes, shift: [0, 0], anchors }
    }

    /// The side of the next change that no anchor parts from line `end`.
    fn next_within(&self, end: usize) -> Option<usize> {
        let start = |side: usize| self.left[side].first().map(|change| change.old.start);
        let near = |at: usize| at <= end || self.anchors.get(at) == self.anchors.get(end);
        (0..2).filter(|&side| start(side).is_some_and(near)).min_by_key(|&side| start(side))
    }
}

impl Iterator for Groups<'_> {
    type Item = Group;

    fn next(&mut self) -> Option<Group> {
        let first = self.next_within(usize::MAX)?;
        let mut old = self.left[first][0].old.clone();
        old.end = old.start;
        let before = self.shift;
        let mut changed = [false, false];
        while let Some(side) = self.next_within(old.end) {
            let (change, rest) = self.left[side].split_first()?;
            self.left[side] = rest;
            changed[side] = true;
            old.end = old.end.max(change.old.end);
            self.shift[side] = change.new.end.cast_signed() - change.old.end.cast_signed();
        }
        let new = [0, 1].map(|side| {
            old.start.saturating_add_signed(before[side])..old.end.saturating_add_signed(self.shift[side])
        });
        Some(Group { old, new, changed })
    }
}

#[cfg(test)]
mod tests {
    use super::{TextMerge, merge_text};
    use crate::ops::merge::Three;

    fn merged(old: &str, base: &str, clone: &str) -> Option<String> {
        let texts = Three { old: old.as_bytes(), base: base.as_bytes(), clone: clone.as_bytes() };
        match merge_text(texts) {
            TextMerge::Merged(text) => Some(String::from_utf8_lossy(&text).into_owned()),
            TextMerge::Conflict(_) | TextMerge::No(_) => None,
        }
    }

    #[test]
    fn changes_apart_are_both_kept() {
        let said = merged("a\nb\nc\nd\ne\n", "A\nb\nc\nd\ne\n", "a\nb\nc\nd\ne\nf\n");
        assert_eq!(said.as_deref(), Some("A\nb\nc\nd\ne\nf\n"));
    }

    #[test]
    fn the_same_change_on_both_sides_is_no_conflict() {
        assert_eq!(merged("a\nb\n", "a\nc\n", "a\nc\n").as_deref(), Some("a\nc\n"));
    }

    #[test]
    fn changes_that_touch_are_a_conflict() {
        assert_eq!(merged("a\nb\nc\n", "a\nB\nc\n", "a\nb\nC\n"), None);
        assert_eq!(merged("a\nb\n", "a\nx\nb\n", "a\ny\nb\n"), None);
    }

    #[test]
    fn changes_with_only_repeated_lines_between_them_are_a_conflict() {
        assert_eq!(merged("a\n}\nb\n}\n", "A\n}\nb\n}\n", "a\n}\nB\n}\n"), None);
        assert_eq!(merged("a\nx\nb\n}\n", "A\nx\nb\n}\n", "a\nx\nB\n}\n").as_deref(), Some("A\nx\nB\n}\n"));
    }

    #[test]
    fn a_last_line_without_line_feed_is_kept_as_it_is() {
        assert_eq!(merged("a\nb\nc", "A\nb\nc", "a\nb\nc").as_deref(), Some("A\nb\nc"));
        assert_eq!(merged("a\nb\nc", "A\nb\nc", "a\nb\nc\n").as_deref(), Some("A\nb\nc\n"));
        assert_eq!(merged("a\nb\nc", "a\nb\nc\nd\n", "a\nb\nc\n"), None);
    }

    #[test]
    fn a_conflict_says_which_lines_of_the_three_texts() {
        let TextMerge::Conflict(overlaps) =
            merge_text(Three { old: b"a\nb\nc\nd\n", base: b"0\na\nb\nx\nd\n", clone: b"a\nb\ny\nz\nd\n" })
        else {
            panic!("no conflict")
        };
        let [overlap] = &overlaps[..] else { panic!("{overlaps:?}") };
        assert_eq!(overlap.lines, Three { old: 2..3, base: 3..4, clone: 2..4 });
    }
}
