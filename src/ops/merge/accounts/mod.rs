//! The account databases, merged by name: passwd, group, shadow, gshadow, subuid, subgid.
//!
//! Fields are merged independently, lists of members as sets. A number is never given to two names, and no name gets
//! another number, by a policy: files on the disk belong to numbers. [`super::renumber`] moves what can be moved first.

mod taken;

pub(super) use taken::{range, ranges};

use super::keyed::{Merged, bounded, index, lines, order, sets, shown};
use super::rules::Winner;
use super::{Side, Three};
use crate::error::Result;
use std::collections::{HashMap, HashSet};
use taken::{held, numbers_taken, ranges_overlap};

/// Longest database, in bytes.
pub(super) const FILE_MAX: usize = 4 << 20;

/// One of the account databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// `/etc/passwd`.
    Passwd,
    /// `/etc/group`.
    Group,
    /// `/etc/shadow`.
    Shadow,
    /// `/etc/gshadow`.
    Gshadow,
    /// `/etc/subuid`.
    Subuid,
    /// `/etc/subgid`.
    Subgid,
}

/// What a field is to a merge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    /// Any bytes; a policy may decide.
    Value(&'static str),
    /// A user's or a group's number.
    Id(&'static str),
    /// Names, as a set.
    Set,
    /// The day of the password's last change: it follows the password.
    Day,
}

use Field::{Day, Id, Set, Value};

const PASSWD: &[Field] = &[
    Value("password"),
    Id("user number"),
    Id("group number"),
    Value("full name"),
    Value("home"),
    Value("shell"),
];
const GROUP: &[Field] = &[Value("password"), Id("group number"), Set];
const SHADOW: &[Field] = &[
    Value("password"),
    Day,
    Value("least age"),
    Value("greatest age"),
    Value("warning"),
    Value("inactivity"),
    Value("expiry"),
    Value("reserved field"),
];
const GSHADOW: &[Field] = &[Value("password"), Set, Set];

impl Database {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Passwd, Self::Group, Self::Shadow, Self::Gshadow, Self::Subuid, Self::Subgid];

    /// Where it is.
    #[must_use]
    pub fn path(self) -> &'static [u8] {
        match self {
            Self::Passwd => b"/etc/passwd",
            Self::Group => b"/etc/group",
            Self::Shadow => b"/etc/shadow",
            Self::Gshadow => b"/etc/gshadow",
            Self::Subuid => b"/etc/subuid",
            Self::Subgid => b"/etc/subgid",
        }
    }

    /// The database at `path`. The copies that end in `-` are none: those are simply the clone's.
    #[must_use]
    pub fn of(path: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|database| database.path() == path)
    }

    /// What follows the name in a line; nothing for ranges, where a line is its own key.
    fn fields(self) -> &'static [Field] {
        match self {
            Self::Passwd => PASSWD,
            Self::Group => GROUP,
            Self::Shadow => SHADOW,
            Self::Gshadow => GSHADOW,
            Self::Subuid | Self::Subgid => &[],
        }
    }

    fn ranges(self) -> bool {
        matches!(self, Self::Subuid | Self::Subgid)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Passwd => "passwd",
            Self::Group => "group",
            Self::Shadow => "shadow",
            Self::Gshadow => "gshadow",
            Self::Subuid => "subuid",
            Self::Subgid => "subgid",
        }
    }
}

/// What a line is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    Name(&'a [u8]),
    /// A comment, an empty or malformed line, a range, a second line of one name: the line itself, and which of its
    /// like it is.
    Line(&'a [u8], usize),
    /// A line of NIS (`+` or `-` first): what follows it is found later.
    Nis(&'a [u8], usize),
}

type Entry<'a> = (Key<'a>, Vec<&'a [u8]>);

/// Merges one database; a missing file is an empty one.
///
/// # Errors
/// `Unsupported` when a file is longer than 4 MiB.
pub fn merge(database: Database, files: Three<&[u8]>, winner: Winner) -> Result<Merged> {
    bounded(database.name(), &files, FILE_MAX)?;
    let mut merged = Merged::default();
    let entries = files.map(|file| entries(database, file));
    let keys = entries.map(|entries| entries.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>());
    let indexes = entries.map(|entries| index(&entries[..]));
    let mut ordered = order(&keys.base, &keys.clone);
    // The clone's additions come before the lines of NIS, as they do in a guest.
    ordered.sort_by_key(|key| matches!(key, Key::Nis(..)));
    let mut names = Vec::new();
    for key in &ordered {
        let three = indexes.map(|index| index.get(key).map(|fields| &fields[..]));
        let Some(fields) = entry(&mut merged, database, key, three, winner) else { continue };
        put(&mut merged.bytes, key, &fields);
        if let Key::Name(name) = key {
            names.push((*name, fields));
        }
    }
    numbers_taken(&mut merged, database, &entries, &names);
    if database.ranges() {
        ranges_overlap(&mut merged, database, &files);
    }
    malformed(&mut merged, database, &ordered);
    Ok(merged)
}

fn entries(database: Database, file: &[u8]) -> Vec<Entry<'_>> {
    let mut seen: HashMap<&[u8], usize> = HashMap::new();
    let mut known: HashSet<&[u8]> = HashSet::new();
    lines(file)
        .into_iter()
        .map(|line| {
            let parts: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
            let nis = matches!(line.first(), Some(b'+' | b'-'));
            if !nis && sound(database, &parts) && known.insert(parts[0]) {
                return (Key::Name(parts[0]), parts[1..].to_vec());
            }
            let count = seen.entry(line).or_insert(0);
            *count += 1;
            (if nis { Key::Nis(line, *count) } else { Key::Line(line, *count) }, Vec::new())
        })
        .collect()
}

/// Who has which number, by the first line of each name.
pub(super) fn numbers(database: Database, file: &[u8]) -> HashMap<&[u8], u32> {
    held(&entries(database, file))
}

/// `file` with another `field` for the numbers of its well-formed lines: the name's own (0) or its primary group's (1).
pub(super) fn with_numbers(database: Database, file: &[u8], new: impl Fn(usize, u32) -> u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(file.len());
    for line in file.split_inclusive(|&byte| byte == b'\n') {
        let (text, end) = line.strip_suffix(b"\n").map_or((line, &b""[..]), |text| (text, &b"\n"[..]));
        let parts: Vec<&[u8]> = text.split(|&byte| byte == b':').collect();
        if matches!(text.first(), Some(b'+' | b'-')) || !sound(database, &parts) {
            bytes.extend_from_slice(line);
            continue;
        }
        let mut seen = 0;
        let mut fields = vec![parts[0].to_vec()];
        for (field, part) in database.fields().iter().zip(&parts[1..]) {
            let old = number(part).filter(|_| matches!(field, Id(_)));
            let moved = old.map(|old| (old, new(seen, old))).filter(|(old, new)| old != new);
            seen += usize::from(old.is_some());
            fields.push(moved.map_or_else(|| part.to_vec(), |(_, new)| new.to_string().into_bytes()));
        }
        bytes.extend_from_slice(&fields.join(&b":"[..]));
        bytes.extend_from_slice(end);
    }
    bytes
}

/// Whether a line is a well-formed account.
fn sound(database: Database, parts: &[&[u8]]) -> bool {
    let fields = database.fields();
    parts.len() == fields.len() + 1
        && !fields.is_empty()
        && parts.first().is_some_and(|name| !name.is_empty() && name[0] != b'#')
        && fields
            .iter()
            .zip(&parts[1..])
            .all(|(field, part)| !matches!(field, Id(_)) || number(part).is_some())
}

pub(super) fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The merged fields of one line; nothing when it is gone.
fn entry<'a>(
    merged: &mut Merged,
    database: Database,
    key: &Key<'a>,
    three: Three<Option<&[&'a [u8]]>>,
    winner: Winner,
) -> Option<Vec<Vec<u8>>> {
    let whole = |fields: &[&[u8]]| fields.iter().map(|field| field.to_vec()).collect();
    if let Some(side) = three.clear() {
        return three.of(side).map(whole);
    }
    let (Some(base), Some(clone)) = (three.base, three.clone) else {
        let gone = if three.base.is_none() { Side::Base } else { Side::Clone };
        let other = if gone == Side::Base { Side::Clone } else { Side::Base };
        let what = || {
            format!(
                "{}: {} is gone in the {} and changed in the {}",
                database.name(),
                named(key),
                gone.word(),
                other.word()
            )
        };
        let side = merged.decide(winner, what);
        return three.of(side).map(whole);
    };
    let mut fields: Vec<Vec<u8>> = Vec::with_capacity(base.len());
    let mut password = None;
    for (place, &field) in database.fields().iter().enumerate() {
        let old = three.old.map(|old| old[place]);
        let values = Three { old, base: Some(base[place]), clone: Some(clone[place]) };
        fields.push(match field {
            Set => members(old.unwrap_or_default(), base[place], clone[place]),
            Day => day(&values, password),
            Id(what) => {
                value(merged, &values, Winner::Fail, || number_differs(database, key, what, &values)).1
            }
            Value(what) => {
                let said =
                    || format!("{}: {}: the {what} changed on both sides", database.name(), named(key));
                let (side, bytes) = value(merged, &values, winner, said);
                password = password.or(Some(side));
                bytes
            }
        });
    }
    Some(fields)
}

fn value(
    merged: &mut Merged,
    values: &Three<Option<&[u8]>>,
    winner: Winner,
    said: impl FnOnce() -> String,
) -> (Option<Side>, Vec<u8>) {
    let clear = values.clear();
    let side = clear.unwrap_or_else(|| merged.decide(winner, said));
    let same = values.base == values.clone;
    ((!same).then_some(side), values.of(side).unwrap_or_default().to_vec())
}

/// The day that belongs to the password that was taken; the later one when both sides have the same password.
fn day(values: &Three<Option<&[u8]>>, password: Option<Option<Side>>) -> Vec<u8> {
    let days = [values.base, values.clone].map(|day| day.and_then(number));
    let side = password.flatten().or(values.clear()).unwrap_or(if days[0] > days[1] {
        Side::Base
    } else {
        Side::Clone
    });
    values.of(side).unwrap_or_default().to_vec()
}

fn members(old: &[u8], base: &[u8], clone: &[u8]) -> Vec<u8> {
    let names = |list: &[u8]| -> Vec<Vec<u8>> {
        list.split(|&byte| byte == b',').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
    };
    sets(&names(old), &names(base), &names(clone)).join(&b","[..])
}

fn number_differs(database: Database, key: &Key<'_>, what: &str, values: &Three<Option<&[u8]>>) -> String {
    let number = |side: Option<&[u8]>| shown(side.unwrap_or_default());
    format!(
        "{}: {} has {what} {} in the base and {} in the clone; give it {0} {what} {2} in the clone, with its files, first",
        database.name(),
        named(key),
        number(values.base),
        number(values.clone),
    )
}

fn named(key: &Key<'_>) -> String {
    match key {
        Key::Name(name) => shown(name),
        Key::Line(line, _) | Key::Nis(line, _) => format!("the line {}", shown(line)),
    }
}

fn put(bytes: &mut Vec<u8>, key: &Key<'_>, fields: &[Vec<u8>]) {
    match key {
        Key::Name(name) => bytes.extend_from_slice(name),
        Key::Line(line, _) | Key::Nis(line, _) => bytes.extend_from_slice(line),
    }
    for field in fields {
        bytes.push(b':');
        bytes.extend_from_slice(field);
    }
    bytes.push(b'\n');
}

fn malformed(merged: &mut Merged, database: Database, ordered: &[Key<'_>]) {
    for key in ordered {
        if let Key::Line(line, _) = key
            && !line.is_empty()
            && line[0] != b'#'
            && !(database.ranges() && range(line).is_some())
        {
            merged.settled(|| {
                format!(
                    "{}: a line that is no account of its own is kept as it is: {}",
                    database.name(),
                    safe(database, line)
                )
            });
        }
    }
}

/// A line without the passwords that it may hold.
fn safe(database: Database, line: &[u8]) -> String {
    match database {
        Database::Subuid | Database::Subgid => shown(line),
        _ => shown(line.split(|&byte| byte == b':').next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Database, Merged, merge};
    use crate::ops::merge::Three;
    use crate::ops::merge::rules::Winner;

    fn merged(database: Database, texts: [&str; 3], winner: Winner) -> Merged {
        let [old, base, clone] = texts.map(str::as_bytes);
        merge(database, Three { old, base, clone }, winner).expect("small files")
    }

    fn clean(database: Database, texts: [&str; 3]) -> String {
        let merged = merged(database, texts, Winner::Fail);
        assert_eq!(merged.conflicts, Vec::<String>::new());
        String::from_utf8(merged.bytes).expect("text")
    }

    const ROOT: &str = "root:x:0:0:root:/root:/bin/bash\n";

    #[test]
    fn accounts_of_both_sides_are_there_and_fields_merge_apart() {
        let old = format!("{ROOT}www:x:33:33:www:/var/www:/bin/sh\n");
        let base =
            format!("{ROOT}www:x:33:33:www:/var/www:/usr/sbin/nologin\nchrony:x:101:101::/:/bin/false\n");
        let clone = format!(
            "{ROOT}www:x:33:33:web:/var/www:/bin/sh\nalice:x:1001:1001:A:/home/alice:/bin/sh\n+::::::\n"
        );
        let said = clean(Database::Passwd, [&old, &base, &clone]);
        let expected = format!(
            "{ROOT}www:x:33:33:web:/var/www:/usr/sbin/nologin\nchrony:x:101:101::/:/bin/false\n\
             alice:x:1001:1001:A:/home/alice:/bin/sh\n+::::::\n"
        );
        assert_eq!(said, expected);
    }

    #[test]
    fn members_merge_as_a_set() {
        let said = clean(Database::Group, ["a:x:5:u,v,w\n", "a:x:5:v,w,n\n", "a:x:5:u,v,c\n"]);
        assert_eq!(said, "a:x:5:v,n,c\n");
        let said = clean(Database::Gshadow, ["a:!:u:v\n", "a:!:u,b:v\n", "a:!::v,c\n"]);
        assert_eq!(said, "a:!:b:v,c\n");
    }

    #[test]
    fn a_number_of_two_new_names_is_a_conflict_whatever_the_policy() {
        let base = format!("{ROOT}one:x:101:101::/:/\n");
        let clone = format!("{ROOT}two:x:101:102::/:/\n");
        for winner in [Winner::Fail, Winner::Base, Winner::Clone, Winner::Both] {
            let said = merged(Database::Passwd, [ROOT, &base, &clone], winner).conflicts;
            let expected = "passwd: number 101 is one in the base and two in the clone; renumber the clone's, with its \
                            files, first: 102 is free";
            assert_eq!(said, [expected]);
        }
        let twice = format!("{ROOT}toor:x:0:0::/:/\n");
        assert!(
            clean(Database::Passwd, [&twice, &twice, &format!("{twice}a:x:7:7::/:/\n")]).contains("toor")
        );
    }

    #[test]
    fn a_name_with_two_numbers_is_a_conflict_whatever_the_policy() {
        let said = merged(Database::Group, ["", "a:x:5:\n", "a:x:6:\n"], Winner::Clone).conflicts;
        assert_eq!(said.len(), 1);
        assert!(
            said[0].starts_with("group: a has group number 5 in the base and 6 in the clone"),
            "{said:?}"
        );
    }

    #[test]
    fn a_password_changed_on_both_sides_needs_a_policy_and_is_never_shown() {
        let texts = ["r:HASH1:1:0:9:7:::\n", "r:HASH2:2:0:9:7:::\n", "r:HASH3:3:0:9:7:::\n"];
        let said = merged(Database::Shadow, texts, Winner::Fail);
        assert_eq!(said.conflicts, ["shadow: r: the password changed on both sides"]);
        let said = merged(Database::Shadow, texts, Winner::Base);
        assert_eq!(
            (&said.bytes[..], said.conflicts.len(), said.settled.len()),
            (&b"r:HASH2:2:0:9:7:::\n"[..], 0, 1)
        );
        assert_eq!(merged(Database::Shadow, texts, Winner::Clone).bytes, b"r:HASH3:3:0:9:7:::\n");
        let said = merged(Database::Shadow, ["", "r:HASH4\n", "r:HASH5:x\n"], Winner::Fail);
        assert_eq!(said.settled.len(), 2);
        assert!(said.settled.iter().all(|sentence| !sentence.contains("HASH")), "{:?}", said.settled);
    }

    #[test]
    fn the_same_new_account_of_two_days_is_no_conflict() {
        assert_eq!(clean(Database::Shadow, ["", "a:!*:100::::::\n", "a:!*:102::::::\n"]), "a:!*:102::::::\n");
    }

    #[test]
    fn removed_and_changed_is_a_conflict_and_removed_alone_is_gone() {
        assert_eq!(clean(Database::Group, ["a:x:5:\nb:x:6:\n", "a:x:5:\nb:x:6:\n", "b:x:6:\n"]), "b:x:6:\n");
        let said = merged(Database::Group, ["a:x:5:\n", "a:x:5:u\n", ""], Winner::Fail).conflicts;
        assert_eq!(said, ["group: a is gone in the clone and changed in the base"]);
    }

    #[test]
    fn comments_and_malformed_lines_stay() {
        let clone = "# mine\nbroken\na:x:5:\na:x:7:\n\n";
        let said = merged(Database::Group, ["a:x:5:\n", "a:x:5:u\n", clone], Winner::Fail);
        assert_eq!(String::from_utf8_lossy(&said.bytes), "a:x:5:u\n# mine\nbroken\na:x:7:\n\n");
        assert_eq!((said.conflicts.len(), said.settled.len()), (0, 2));
    }

    #[test]
    fn ranges_that_overlap_are_a_conflict() {
        let said =
            merged(Database::Subuid, ["", "bob:165536:65536\n", "alice:165536:65536\n"], Winner::Clone);
        assert_eq!(said.conflicts.len(), 1);
        assert!(said.conflicts[0].contains("overlap at 165536"), "{said:?}");
        let said = clean(Database::Subgid, ["a:1:5\n", "a:1:5\nb:10:5\n", "a:1:5\nc:20:5\n"]);
        assert_eq!(said, "a:1:5\nb:10:5\nc:20:5\n");
    }
}
