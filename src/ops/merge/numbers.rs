//! Numbers that accounts are given.

use std::ops::Range;

/// Numbers that are given out to the system's accounts as they come; those below have a meaning of their own.
const SYSTEM: Range<u32> = 100..1000;
/// Numbers of people; those above belong to nobody or to containers.
pub(super) const PEOPLE: Range<u32> = 1000..60_000;

/// Whether a number was given out as it came, and may be another one.
pub(super) fn is_movable(id: u32) -> bool {
    SYSTEM.contains(&id) || PEOPLE.contains(&id)
}

/// Other numbers for who has `old`, of the same kind (the system's, or people's), in the order in which they are tried: those
/// behind it first.
pub(super) fn candidates(old: u32) -> impl Iterator<Item = u32> {
    let all = if old < PEOPLE.start { SYSTEM } else { PEOPLE };
    let behind = old.saturating_add(1).clamp(all.start, all.end);
    (behind..all.end).chain(all.start..behind).filter(move |id| *id != old)
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn other_numbers_are_of_the_same_kind_those_behind_first_and_each_once() {
        for (old, first, count) in [
            (0, 100, 900),
            (99, 100, 900),
            (101, 102, 899),
            (999, 100, 899),
            (1000, 1001, 58_999),
            (65_534, 1000, 59_000),
        ] {
            let mut tried: Vec<u32> = candidates(old).collect();
            assert_eq!((tried.first(), tried.len()), (Some(&first), count), "{old}");
            tried.sort_unstable();
            tried.dedup();
            assert!(tried.len() == count && !tried.contains(&old), "{old}");
        }
    }
}
