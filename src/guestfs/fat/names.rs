//! Names: long ones, the short ones beside them, and which are the same.

use super::damaged;
use crate::error::Result;
use crate::guestfs::partitions::u16_at;
use std::collections::HashSet;

/// Characters of a long name in one slot, and where they stand.
const IN_SLOT: usize = 13;
const PLACES: [usize; IN_SLOT] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// Most characters of a long name.
pub(super) const LONGEST: usize = 255;
/// Bits of a short entry that show its two parts in lower case.
const LOWER: [u8; 2] = [0x08, 0x10];
pub(super) const SLOT: usize = 32;
pub(super) type Short = [u8; 11];

/// What two names of one file have in common: FAT does not tell upper from lower case.
#[must_use]
pub fn fold(name: &str) -> String {
    let upper = |char: char| {
        let mut upper = char.to_uppercase();
        match (upper.next(), upper.next()) {
            (Some(one), None) => one,
            _ => char,
        }
    };
    name.chars().map(upper).collect()
}

/// The sum of a short name that its long name carries.
pub(super) fn sum(short: &Short) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The long name in `slots`, which stand before the short one, last part first.
pub(super) fn long(slots: &[u8], short: &Short) -> Result<String> {
    let count = slots.len() / SLOT;
    let mut units = Vec::with_capacity(count * IN_SLOT);
    for (number, slot) in (1..).zip(slots.rchunks_exact(SLOT)) {
        let last = if number == count { 0x40 } else { 0 };
        if usize::from(slot[0]) != number | last
            || slot[12] != 0
            || slot[13] != sum(short)
            || u16_at(slot, 26) != 0
        {
            return Err(damaged("a long name does not belong to its short one"));
        }
        units.extend(PLACES.map(|at| u16_at(slot, at)));
    }
    let len = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    let padded = units.get(len + 1..).unwrap_or_default();
    let name = String::from_utf16(&units[..len]).map_err(|_| damaged("a name is no UTF-16"))?;
    // The last slot holds a character, and what follows the name are ones.
    if len + IN_SLOT <= units.len() || len > LONGEST || padded.iter().any(|unit| *unit != 0xffff) {
        return Err(damaged("a long name breaks its format"));
    }
    check(&name)?;
    Ok(name)
}

/// Refuses what no FAT may have as a name.
pub(super) fn check(name: &str) -> Result<()> {
    let wrong = |char: char| char < ' ' || "\"*/:<>?\\|\u{7f}".contains(char);
    let units = name.encode_utf16().count();
    if units == 0 || units > LONGEST || name.ends_with([' ', '.']) || name.chars().any(wrong) {
        return Err(damaged("a name is none that FAT takes"));
    }
    Ok(())
}

/// The name that a short entry without a long name shows.
pub(super) fn shown(short: &Short, case: u8) -> Result<String> {
    if short.iter().any(|byte| !byte.is_ascii()) || short[0] == 5 {
        return Err(crate::error::Error::unsupported(
            "a FAT filesystem with a short name beyond ASCII is not merged by files",
        ));
    }
    check_short(short)?;
    let part = |bytes: &[u8], lower: u8| {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if case & lower == 0 { text } else { text.to_ascii_lowercase() }
    };
    let (base, end) = (part(&short[..8], LOWER[0]), part(&short[8..], LOWER[1]));
    let name = if end.is_empty() { base } else { format!("{base}.{end}") };
    check(&name)?;
    Ok(name)
}

/// Refuses short names that break their format.
pub(super) fn check_short(short: &Short) -> Result<()> {
    let wrong =
        |byte: &u8| *byte < b' ' || byte.is_ascii_lowercase() || b"\"*+,./:;<=>?[\\]|\x7f".contains(byte);
    let first = if short[0] == 5 { 0xe5 } else { short[0] };
    if first == b' ' || short[1..].iter().chain([&first]).any(wrong) {
        return Err(damaged("a short name breaks its format"));
    }
    Ok(())
}

/// A short entry that shows `name` all by itself: the name, and the bits for its case.
fn plain(name: &str) -> Option<(Short, u8)> {
    let (base, end) = name.rsplit_once('.').unwrap_or((name, ""));
    let (mut short, mut case) = ([b' '; 11], 0);
    if base.is_empty() || base.len() > 8 || end.len() > 3 || name.ends_with('.') {
        return None;
    }
    for (part, place, lower) in [(base, 0, LOWER[0]), (end, 8, LOWER[1])] {
        let (small, large) =
            (part.bytes().any(|b| b.is_ascii_lowercase()), part.bytes().any(|b| b.is_ascii_uppercase()));
        if !part.bytes().all(is_short) || (small && large) {
            return None;
        }
        case |= if small { lower } else { 0 };
        for (at, byte) in part.bytes().enumerate() {
            short[place + at] = byte.to_ascii_uppercase();
        }
    }
    Some((short, case))
}

fn is_short(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'()-@^_`{}~".contains(&byte)
}

/// The slots of an entry named `name`: those of a long name, where one is needed, and the short one with nothing but its
/// name and case. `taken` are the short names of the folder.
pub(super) fn slots(name: &str, taken: &mut HashSet<Short>) -> Result<Vec<u8>> {
    check(name)?;
    let (short, case, long) = match plain(name).filter(|(short, _)| !taken.contains(short)) {
        Some((short, case)) => (short, case, false),
        None => (alias(name, taken)?, 0, true),
    };
    taken.insert(short);
    let mut bytes = if long { long_slots(name, &short) } else { Vec::new() };
    let mut entry = [0; SLOT];
    entry[..11].copy_from_slice(&short);
    entry[12] = case;
    bytes.extend(entry);
    Ok(bytes)
}

/// A short name that nobody else has in the folder.
fn alias(name: &str, taken: &HashSet<Short>) -> Result<Short> {
    let letters = |text: &str| -> Vec<u8> {
        text.bytes().filter(|byte| is_short(*byte)).map(|byte| byte.to_ascii_uppercase()).collect()
    };
    let (base, end) = name.rsplit_once('.').filter(|(base, _)| !base.is_empty()).unwrap_or((name, ""));
    let (base, end) = (letters(base), letters(end));
    for number in 1..1_000_000_u32 {
        let tail = format!("~{number}");
        let head = &base[..base.len().min(8 - tail.len())];
        let mut short = [b' '; 11];
        for (at, byte) in head.iter().copied().chain(tail.bytes()).enumerate() {
            short[at] = byte;
        }
        for (at, byte) in end.iter().take(3).enumerate() {
            short[8 + at] = *byte;
        }
        if !taken.contains(&short) {
            return Ok(short);
        }
    }
    Err(crate::error::Error::new(crate::Kind::NoSpace, "a folder has no short name left"))
}

fn long_slots(name: &str, short: &Short) -> Vec<u8> {
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(IN_SLOT) {
        units.push(0);
    }
    let count = units.len().div_ceil(IN_SLOT);
    units.resize(count * IN_SLOT, 0xffff);
    let mut bytes = Vec::with_capacity(count * SLOT);
    for (number, part) in (1_u8..).zip(units.chunks(IN_SLOT)).collect::<Vec<_>>().into_iter().rev() {
        let mut slot = [0; SLOT];
        slot[0] = number | if usize::from(number) == count { 0x40 } else { 0 };
        slot[11] = 0x0f;
        slot[13] = sum(short);
        for (at, unit) in PLACES.into_iter().zip(part) {
            slot[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes.extend(slot);
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The name that slots show, and the short one beside it.
    fn read(slots: &[u8]) -> (String, String) {
        let (long_slots, entry) = slots.split_at(slots.len() - SLOT);
        let short: Short = entry[..11].try_into().unwrap();
        check_short(&short).unwrap();
        let name = if long_slots.is_empty() { shown(&short, entry[12]) } else { long(long_slots, &short) };
        (name.unwrap(), String::from_utf8(short.to_vec()).unwrap())
    }

    #[test]
    fn each_name_is_read_as_it_was_written_with_a_short_one_of_its_own() {
        let mut taken = HashSet::new();
        let mut seen = Vec::new();
        let long = "x".repeat(255);
        let names = [
            "BOOTX64.EFI",
            "grub.cfg",
            "Mixed.Cfg",
            "a",
            "thirteen.char",
            "grubx64.efi.signed",
            "grubx64.efi.old",
            ".hidden",
            "zwei Wörter",
            "日本語",
            "UPPER.low",
            "a+b",
            &long,
        ];
        for name in names {
            let slots = slots(name, &mut taken).unwrap();
            let (read, short) = read(&slots);
            assert_eq!(read, name);
            seen.push(short);
        }
        assert_eq!(&seen[..3], ["BOOTX64 EFI", "GRUB    CFG", "MIXED~1 CFG"]);
        assert_eq!((&seen[5][..], &seen[6][..]), ("GRUBX6~1SIG", "GRUBX6~1OLD"));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), names.len());
        assert!(
            slots("a:b", &mut taken).is_err()
                && slots("", &mut taken).is_err()
                && slots("a.", &mut taken).is_err()
        );
    }

    #[test]
    fn a_short_name_that_is_taken_gets_a_number() {
        let mut taken = HashSet::new();
        for number in 1..30 {
            let (name, short) = read(&slots(&format!("long name {number}.txt"), &mut taken).unwrap());
            assert_eq!(name, format!("long name {number}.txt"));
            assert!(short.contains(&format!("~{number}")), "{short}");
        }
    }

    #[test]
    fn a_long_name_that_belongs_to_another_is_damage() {
        let good = slots("a long name", &mut HashSet::new()).unwrap();
        let short: Short = good[good.len() - SLOT..][..11].try_into().unwrap();
        let slots = &good[..good.len() - SLOT];
        assert!(long(slots, &short).is_ok());
        for at in [0, 12, 13, 26] {
            let mut wrong = slots.to_vec();
            wrong[at] ^= 1;
            assert!(long(&wrong, &short).is_err(), "{at}");
        }
        assert!(long(slots, b"OTHER   TXT").is_err());
    }

    #[test]
    fn upper_and_lower_case_are_the_same() {
        assert_eq!(fold("Grub.cfg"), fold("GRUB.CFG"));
        assert_eq!(fold("größe"), fold("GRÖßE"));
        assert_ne!(fold("a"), fold("b"));
    }
}
