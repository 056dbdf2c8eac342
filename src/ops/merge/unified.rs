//! Differences of texts for people to read.

use super::Three;
use super::changes::{Change, From, Lines, NoLines};
use std::fmt::Write as _;
use std::ops::Range;

/// Equal lines shown around a change.
const CONTEXT: usize = 3;
/// Most bytes of a report's difference; the rest is counted.
const REPORT_MAX: usize = 64 << 10;

/// What leads from `a` to `b`, in the unified format, and nothing when they are equal. What is no text, or too long
/// (see [`super::text::merge_text`]), is one sentence.
///
/// Lines are as they are in the guest: before they reach a terminal, [`printable`] takes the control bytes out.
#[must_use]
pub fn unified(a: &[u8], b: &[u8], labels: [&str; 2]) -> String {
    if a == b {
        return String::new();
    }
    let reason = match Lines::new([a, b]) {
        Ok(lines) => return hunks(&lines, labels),
        Err(NoLines::NotText) => "they are no text",
        Err(NoLines::TooLong) => "they are too long to compare line by line",
    };
    format!("{} and {} differ; {reason}\n", labels[0], labels[1])
}

/// What the clone and the new base made of a text, one after the other, for a report: at most about 64 KiB each, and
/// printable.
#[must_use]
pub fn three_way_diff(texts: Three<&[u8]>) -> String {
    let clone = unified(texts.old, texts.clone, ["old base", "clone"]);
    let base = unified(texts.old, texts.base, ["old base", "new base"]);
    [clone, base].iter().map(|diff| printable(&short(diff))).collect()
}

/// `text` without anything that moves a terminal's cursor, changes its colours or reorders its letters: such
/// characters are shown as `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns =
            matches!(letter, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (letter.is_control() && letter != '\n' && letter != '\t') || turns {
            shown.extend(letter.escape_unicode());
        } else {
            shown.push(letter);
        }
    }
    shown
}

fn short(diff: &str) -> String {
    let mut end = diff.len().min(REPORT_MAX);
    if end == diff.len() {
        return diff.to_owned();
    }
    while !diff.is_char_boundary(end) {
        end -= 1;
    }
    let (shown, rest) = diff.split_at(diff[..end].rfind('\n').map_or(end, |at| at + 1));
    format!("{shown}... and {} more lines\n", rest.lines().count())
}

fn hunks(lines: &Lines<'_, 2>, labels: [&str; 2]) -> String {
    let mut output = format!("--- {}\n+++ {}\n", labels[0], labels[1]);
    let changes = lines.changes(0, 1, From::Start);
    let [old, new] = &lines.lines;
    let near = |a: &Change, b: &Change| b.old.start - a.old.end <= 2 * CONTEXT;
    for group in changes.chunk_by(near) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let lead = first.old.start.min(CONTEXT);
        let tail = (old.len() - last.old.end).min(CONTEXT);
        let shown = first.old.start - lead..last.old.end + tail;
        let other = first.new.start - lead..last.new.end + tail;
        let _ = writeln!(output, "@@ -{} +{} @@", place(&shown), place(&other));
        let mut at = shown.start;
        for change in group {
            put(&mut output, ' ', &old[at..change.old.start]);
            put(&mut output, '-', &old[change.old.clone()]);
            put(&mut output, '+', &new[change.new.clone()]);
            at = change.old.end;
        }
        put(&mut output, ' ', &old[at..shown.end]);
    }
    output
}

/// Lines as a hunk's head names them: an empty range lies behind the line that it names.
fn place(lines: &Range<usize>) -> String {
    match lines.len() {
        0 => format!("{},0", lines.start),
        1 => format!("{}", lines.start + 1),
        count => format!("{},{count}", lines.start + 1),
    }
}

fn put(output: &mut String, sign: char, lines: &[&[u8]]) {
    for line in lines {
        output.push(sign);
        output.push_str(&String::from_utf8_lossy(line));
        if !line.ends_with(b"\n") {
            output.push_str("\n\\ No newline at end of file\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{printable, three_way_diff, unified};
    use crate::ops::merge::Three;

    #[test]
    fn a_change_is_shown_with_three_lines_around_it() {
        let shown = unified(b"1\n2\n3\n4\n5\n6\n", b"1\n2\n3\n4\n5\nsix", ["a", "b"]);
        let expected = "--- a\n+++ b\n@@ -3,4 +3,4 @@\n 3\n 4\n 5\n-6\n+six\n\\ No newline at end of file\n";
        assert_eq!(shown, expected);
        assert_eq!(unified(b"same\n", b"same\n", ["a", "b"]), "");
        assert_eq!(unified(b"\0", b"x", ["a", "b"]), "a and b differ; they are no text\n");
    }

    #[test]
    fn a_report_shows_both_sides_shortened_and_harmless() {
        let long: String = (0..20_000).map(|line| format!("line {line}\n")).collect();
        let shown = three_way_diff(Three { old: b"x\n", base: long.as_bytes(), clone: b"\x1b[31mred\n" });
        assert!(shown.contains("--- old base\n+++ clone\n@@ -1 +1 @@\n-x\n+\\u{1b}[31mred\n"), "{shown}");
        assert!(shown.ends_with("more lines\n") && shown.len() < 70_000, "{}", shown.len());
    }

    #[test]
    fn control_bytes_do_not_reach_the_terminal() {
        assert_eq!(printable("a\tb\r\u{202e}\u{9b}\n"), "a\tb\\u{d}\\u{202e}\\u{9b}\n");
    }
}
