//! The order of Debian's version numbers, after deb-version(7).

use std::cmp::Ordering;

/// Compares two versions. Bytes that no version may have are compared as dpkg compares those that it may.
#[must_use]
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let ([a_epoch, a_upstream, a_revision], [b_epoch, b_upstream, b_revision]) = (parts(a), parts(b));
    part(a_epoch, b_epoch)
        .then_with(|| part(a_upstream, b_upstream))
        .then_with(|| part(a_revision, b_revision))
}

/// Epoch, upstream version, revision. A missing part is as one that is 0.
fn parts(version: &[u8]) -> [&[u8]; 3] {
    let colon = version.iter().position(|&byte| byte == b':');
    let (epoch, rest) = colon.map_or((&b""[..], version), |at| (&version[..at], &version[at + 1..]));
    let dash = rest.iter().rposition(|&byte| byte == b'-');
    let (upstream, revision) = dash.map_or((rest, &b""[..]), |at| (&rest[..at], &rest[at + 1..]));
    [epoch, upstream, revision]
}

fn part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let words = [cut(&mut a, |byte| !byte.is_ascii_digit()), cut(&mut b, |byte| !byte.is_ascii_digit())];
        let numbers = [cut(&mut a, u8::is_ascii_digit), cut(&mut b, u8::is_ascii_digit)];
        let order = words_order(words[0], words[1]).then_with(|| numbers_order(numbers[0], numbers[1]));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

fn cut<'a>(text: &mut &'a [u8], of: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|byte| !of(byte)).unwrap_or(text.len());
    let (start, rest) = text.split_at(end);
    *text = rest;
    start
}

/// A tilde before the end, the end before letters, letters before all else.
fn words_order(a: &[u8], b: &[u8]) -> Ordering {
    let weight = |byte: Option<&u8>| match byte {
        None => 0,
        Some(b'~') => -1,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    let places = 0..a.len().max(b.len());
    places
        .map(|at| weight(a.get(at)).cmp(&weight(b.get(at))))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn numbers_order(a: &[u8], b: &[u8]) -> Ordering {
    let [a, b] = [a, b].map(|digits| &digits[digits.iter().take_while(|&&digit| digit == b'0').count()..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}
