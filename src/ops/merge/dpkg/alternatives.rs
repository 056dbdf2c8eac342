//! `update-alternatives`: one file in `/var/lib/dpkg/alternatives` for each name, and links in `/etc/alternatives`.
//!
//! What may be chosen is a set, the mode is the user's, and in automatic mode the choice follows from the set. So the
//! file is merged and the links are made from it, never merged for themselves.

use crate::error::{Error, Result};
use crate::ops::merge::keyed::{Merged, bounded, index, order, shown};
use crate::ops::merge::rules::Winner;
use crate::ops::merge::{Side, Three};
use std::collections::BTreeMap;

/// Longest file, in bytes.
const FILE_MAX: usize = 1 << 20;
/// Most links that go with one, and most things to choose from.
const COUNT_MAX: usize = 1000;

/// A name after a merge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    /// The file; no bytes when nothing is left to choose from, and then there is no file.
    pub merged: Merged,
    /// Links in `/etc/alternatives` by name: where each leads, or that there is none.
    pub links: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// A file as it was read.
#[derive(Clone, Debug, Default)]
struct Group<'a> {
    manual: bool,
    link: &'a [u8],
    /// Links that go with the name: name and path.
    slaves: Vec<(&'a [u8], &'a [u8])>,
    /// What may be chosen: path, and priority with the slaves' targets by name.
    choices: Vec<(&'a [u8], Choice<'a>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice<'a> {
    priority: i64,
    slaves: BTreeMap<&'a [u8], &'a [u8]>,
}

/// Merges the file of `name`; an empty one is a missing one. `chosen` is where the link `/etc/alternatives/NAME` leads.
///
/// # Errors
/// `Corrupt` when a file is not one of update-alternatives, with the reason; `Unsupported` when one is too large.
pub fn merge(
    name: &[u8],
    files: Three<&[u8]>,
    chosen: Three<Option<&[u8]>>,
    winner: Winner,
) -> Result<Alternatives> {
    bounded("a file of alternatives", &files, FILE_MAX)?;
    let read = |file| {
        parse(file).map_err(|reason| Error::corrupt(format!("alternatives of {}: {reason}", shown(name))))
    };
    let groups = Three { old: read(files.old)?, base: read(files.base)?, clone: read(files.clone)? };
    let mut result = Alternatives::default();
    let merged = &mut result.merged;
    let all = groups.map(|group| group.choices.iter().map(|(path, _)| *path).collect::<Vec<_>>());
    let indexes = groups.map(|group| index(&group.choices));
    let mut choices = Vec::new();
    for path in order(&all.base, &all.clone) {
        let three = indexes.map(|index| index.get(&path).copied());
        let said = || format!("alternatives of {}: {} changed on both sides", shown(name), shown(path));
        let side = three.clear().unwrap_or_else(|| merged.decide(winner, said));
        choices.extend(three.of(side).map(|choice| (path, choice.clone())));
    }
    let head = groups.map(|group| group.link);
    let said = || format!("alternatives of {}: the link changed on both sides", shown(name));
    let side = head.clear().unwrap_or_else(|| merged.decide(winner, said));
    let side = if groups.of(side).link.is_empty() { other(side) } else { side };
    let wanted = wish(name, &groups, &chosen, merged, winner);
    let manual = wanted.filter(|path| choices.iter().any(|(choice, _)| choice == path));
    let best = choices.iter().max_by_key(|(_, choice)| choice.priority).map(|(path, _)| *path);
    let slaves = slaves(&groups);
    let group = Group { manual: manual.is_some(), link: groups.of(side).link, slaves, choices };
    result.links = links(name, &group, manual.or(best));
    if !group.choices.is_empty() {
        result.merged.bytes = written(&group);
    }
    Ok(result)
}

fn other(side: Side) -> Side {
    if side == Side::Base { Side::Clone } else { Side::Base }
}

/// What a user chose by hand, if the merged mode is manual.
fn wish<'a>(
    name: &[u8],
    groups: &Three<Group<'_>>,
    chosen: &Three<Option<&'a [u8]>>,
    merged: &mut Merged,
    winner: Winner,
) -> Option<&'a [u8]> {
    let wishes = Three {
        old: chosen.old.filter(|_| groups.old.manual),
        base: chosen.base.filter(|_| groups.base.manual),
        clone: chosen.clone.filter(|_| groups.clone.manual),
    };
    let said = || format!("alternatives of {}: chosen by hand on both sides", shown(name));
    let side = wishes.clear().unwrap_or_else(|| merged.decide(winner, said));
    *wishes.of(side)
}

fn slaves<'a>(groups: &Three<Group<'a>>) -> Vec<(&'a [u8], &'a [u8])> {
    let names = groups.map(|group| group.slaves.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let indexes = groups.map(|group| index(&group.slaves));
    let found = |name: &'a [u8]| {
        let link = indexes.base.get(&name).or(indexes.clone.get(&name))?;
        Some((name, **link))
    };
    order(&names.base, &names.clone).into_iter().filter_map(found).collect()
}

fn links(name: &[u8], group: &Group<'_>, choice: Option<&[u8]>) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let mut links = BTreeMap::new();
    links.insert(name.to_vec(), choice.map(<[u8]>::to_vec));
    let found = group.choices.iter().find(|(path, _)| Some(*path) == choice);
    for (slave, _) in &group.slaves {
        let target =
            found.and_then(|(_, choice)| choice.slaves.get(slave)).filter(|target| !target.is_empty());
        links.insert(slave.to_vec(), target.map(|target| target.to_vec()));
    }
    links
}

fn parse(file: &[u8]) -> Result<Group<'_>, &'static str> {
    if file.is_empty() {
        return Ok(Group::default());
    }
    let mut lines = file.split(|&byte| byte == b'\n');
    let mut next = move || lines.next().ok_or("it is cut");
    let manual = match next()? {
        b"auto" => false,
        b"manual" => true,
        _ => return Err("its mode is neither auto nor manual"),
    };
    let mut group = Group { manual, link: next()?, ..Group::default() };
    loop {
        match next()? {
            b"" => break,
            name => group.slaves.push((name, next()?)),
        }
        if group.slaves.len() > COUNT_MAX {
            return Err("it has more than 1000 links");
        }
    }
    loop {
        let path = match next()? {
            b"" => return Ok(group),
            path => path,
        };
        let digits = std::str::from_utf8(next()?).ok();
        let priority = digits.and_then(|digits| digits.parse().ok()).ok_or("a priority that is no number")?;
        let mut slaves = BTreeMap::new();
        for (name, _) in &group.slaves {
            slaves.insert(*name, next()?);
        }
        group.choices.push((path, Choice { priority, slaves }));
        if group.choices.len() > COUNT_MAX {
            return Err("it has more than 1000 choices");
        }
    }
}

fn written(group: &Group<'_>) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = vec![if group.manual { b"manual".to_vec() } else { b"auto".to_vec() }];
    lines.push(group.link.to_vec());
    for (name, link) in &group.slaves {
        lines.extend([name.to_vec(), link.to_vec()]);
    }
    lines.push(Vec::new());
    for (path, choice) in &group.choices {
        lines.extend([path.to_vec(), choice.priority.to_string().into_bytes()]);
        lines.extend(
            group
                .slaves
                .iter()
                .map(|(name, _)| choice.slaves.get(name).map(|target| target.to_vec()).unwrap_or_default()),
        );
    }
    lines.push(Vec::new());
    lines.push(Vec::new());
    lines.join(&b"\n"[..])
}

#[cfg(test)]
mod tests {
    use super::{Alternatives, merge};
    use crate::ops::merge::Three;
    use crate::ops::merge::rules::Winner;

    const ED: &str = "/bin/ed\n-100\n/man/ed\n";
    const VIM: &str = "/usr/bin/vim\n30\n/man/vim\n";
    const NANO: &str = "/bin/nano\n40\n/man/nano\n";

    fn file(mode: &str, choices: &[&str]) -> String {
        format!("{mode}\n/usr/bin/editor\neditor.1\n/man/editor\n\n{}\n", choices.concat())
    }

    fn merged(files: [&str; 3], chosen: [&str; 3]) -> Alternatives {
        let [old, base, clone] = files.map(str::as_bytes);
        let [a, b, c] = chosen.map(|path| Some(path.as_bytes()));
        let chosen = Three { old: a, base: b, clone: c };
        merge(b"editor", Three { old, base, clone }, chosen, Winner::Fail).expect("sound")
    }

    #[test]
    fn choices_are_a_set_and_automatic_mode_takes_the_best_of_it() {
        let [old, base, clone] = [&[ED][..], &[ED, NANO], &[ED, VIM]].map(|choices| file("auto", choices));
        let said = merged([&old, &base, &clone], ["/bin/ed", "/bin/nano", "/usr/bin/vim"]);
        assert_eq!(String::from_utf8_lossy(&said.merged.bytes), file("auto", &[ED, NANO, VIM]));
        assert_eq!(said.links[&b"editor"[..]].as_deref(), Some(&b"/bin/nano"[..]));
        assert_eq!(said.links[&b"editor.1"[..]].as_deref(), Some(&b"/man/nano"[..]));
        assert_eq!(said.merged.conflicts.len(), 0);
    }

    #[test]
    fn a_choice_by_hand_stays_as_long_as_it_is_there() {
        let (old, base) = (file("auto", &[ED, VIM]), file("auto", &[ED, VIM, NANO]));
        let clone = file("manual", &[ED, VIM]);
        let said = merged([&old, &base, &clone], ["/usr/bin/vim", "/bin/nano", "/bin/ed"]);
        assert_eq!(String::from_utf8_lossy(&said.merged.bytes), file("manual", &[ED, VIM, NANO]));
        assert_eq!(said.links[&b"editor"[..]].as_deref(), Some(&b"/bin/ed"[..]));
        let said = merged([&old, &file("auto", &[VIM]), &clone], ["/usr/bin/vim", "/usr/bin/vim", "/bin/ed"]);
        assert_eq!(String::from_utf8_lossy(&said.merged.bytes), file("auto", &[VIM]));
        let said = merged([&old, "", &old], ["/usr/bin/vim"; 3]);
        assert_eq!((said.merged.bytes.len(), said.links[&b"editor"[..]].clone()), (0, None));
    }

    #[test]
    fn a_broken_file_is_named() {
        let none = Three { old: None, base: None, clone: None };
        let sides = |file| Three { old: &b""[..], base: b"", clone: file };
        let said = |file| merge(b"x", sides(file), none, Winner::Fail).expect_err("refused").to_string();
        assert_eq!(said(b"often\n"), "alternatives of x: its mode is neither auto nor manual");
        assert_eq!(said(b"auto\n/x"), "alternatives of x: it is cut");
        assert_eq!(said(b"auto\n/x\n\n/a\nhigh\n"), "alternatives of x: a priority that is no number");
    }
}
