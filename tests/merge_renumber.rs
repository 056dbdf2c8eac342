//! Accounts that both sides added under the same numbers: the base's move, and whose a file is stays true.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod memfs;
    pub mod rng;
}

use common::memfs::{Executor, Fs, Three3, text};
use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::guestfs::ext4::FileKind;
use cowshed::ops::merge::accounts::{Database, merge};
use cowshed::ops::merge::renumber::{AccountFiles, Ids, Moves};
use cowshed::ops::merge::rules::{Rules, Winner};
use cowshed::ops::merge::{self, Pairs, Part, Plan, Three};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

const ACL: &[u8] = b"system.posix_acl_access";

/// One system's accounts, as `useradd` and `groupadd` give them out.
#[derive(Clone, Debug, Default)]
struct System {
    users: BTreeMap<String, [u32; 2]>,
    groups: BTreeMap<String, u32>,
    ranges: BTreeMap<String, u32>,
}

impl System {
    fn group(&mut self, name: &str, wanted: Option<u32>, first: u32) -> u32 {
        let above =
            |taken: &mut dyn Iterator<Item = u32>| taken.max().map_or(first, |max| (max + 1).max(first));
        let of_kind = |id: &u32| (*id < 1000) == (first < 1000);
        let free = wanted.filter(|id| !self.groups.values().any(|taken| taken == id));
        let id = free.unwrap_or_else(|| above(&mut self.groups.values().copied().filter(of_kind)));
        self.groups.insert(name.to_owned(), id);
        id
    }

    fn user(&mut self, name: &str, first: u32) {
        let of_kind = |id: &u32| (*id < 1000) == (first < 1000);
        let uid = self.users.values().map(|ids| ids[0]).filter(of_kind).max().map_or(first, |max| max + 1);
        let gid = self.group(name, Some(uid), first);
        self.users.insert(name.to_owned(), [uid, gid]);
        if first >= 1000 {
            let start = self.ranges.values().max().map_or(100_000, |max| max + 65_536);
            self.ranges.insert(name.to_owned(), start);
        }
    }

    fn write(&self, fs: &mut Fs) {
        let mut files: [String; 6] = Default::default();
        files[0] += "root:x:0:0:root:/root:/bin/sh\n";
        files[1] += "root:x:0:\n";
        files[2] += "root:!*:19000:0:99999:7:::\n";
        files[3] += "root:*::\n";
        for (name, [uid, gid]) in &self.users {
            files[0] += &format!("{name}:x:{uid}:{gid}::/home/{name}:/bin/sh\n");
            files[2] += &format!("{name}:!*:19000:0:99999:7:::\n");
        }
        for (name, gid) in &self.groups {
            files[1] += &format!("{name}:x:{gid}:\n");
            files[3] += &format!("{name}:!::\n");
        }
        for (name, start) in &self.ranges {
            files[4] += &format!("{name}:{start}:65536\n");
            files[5] += &format!("{name}:{start}:65536\n");
        }
        for (database, file) in Database::ALL.into_iter().zip(files) {
            fs.write(database.path(), file.as_bytes());
        }
    }

    /// Files of users, groups and both, with lists of access.
    fn files(&self, fs: &mut Fs, side: &str, rng: &mut Rng) {
        let (users, groups): (Vec<_>, Vec<_>) =
            (self.users.values().collect(), self.groups.values().collect());
        for number in 0..rng.below(8) {
            if users.is_empty() {
                return;
            }
            let (uid, gid) = (rng.pick(&users)[0], **rng.pick(&groups));
            let (named, group) = (rng.pick(&users)[0], **rng.pick(&groups));
            let inode = fs.make(format!("/srv/{side}{number}").as_bytes(), FileKind::Regular);
            (inode.uid, inode.gid) = (uid, gid);
            if rng.chance(40) {
                inode
                    .xattrs
                    .insert(ACL.to_vec(), acl(&[(1, u32::MAX), (2, named), (8, group), (0x20, u32::MAX)]));
            }
        }
    }
}

fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend([6, 0]);
        list.extend(id.to_le_bytes());
    }
    list
}

/// Names of users and of groups by number, from the files of a filesystem.
fn names(fs: &Fs) -> [BTreeMap<u32, BTreeSet<String>>; 2] {
    ["/etc/passwd", "/etc/group"].map(|path| {
        let mut names = BTreeMap::<u32, BTreeSet<String>>::new();
        let file = text(&fs.inodes[&fs.find(path.as_bytes()).unwrap()].content);
        for line in file.lines() {
            let parts: Vec<&str> = line.split(':').collect();
            names.entry(parts[2].parse().unwrap()).or_default().insert(parts[0].to_owned());
        }
        names
    })
}

/// Whose each file is, in names: owner, group, and those of its list of access.
fn owners(fs: &Fs) -> BTreeMap<String, Vec<String>> {
    let [users, groups] = names(fs);
    let of = |names: &BTreeMap<u32, BTreeSet<String>>, id: u32| format!("{:?}", names.get(&id));
    let mut all = BTreeMap::new();
    for (path, ino) in fs.walk().into_iter().filter(|(path, _)| path.starts_with(b"/srv/")) {
        let inode = &fs.inodes[&ino];
        let mut whose = vec![of(&users, inode.uid), of(&groups, inode.gid)];
        for entry in inode.xattrs.get(ACL).iter().flat_map(|list| list[4..].chunks_exact(8)) {
            let id = u32::from_le_bytes(entry[4..].try_into().unwrap());
            match entry[0] {
                2 => whose.push(of(&users, id)),
                8 => whose.push(of(&groups, id)),
                _ => {}
            }
        }
        all.insert(text(&path), whose);
    }
    all
}

struct Case {
    three: Three<Fs>,
}

impl Case {
    fn new(rng: &mut Rng) -> Self {
        let mut old = System::default();
        for name in ["ann", "mail"].into_iter().take(rng.below(3) as usize) {
            old.user(name, if name == "mail" { 100 } else { 1000 });
        }
        let mut fs = Fs::new();
        ["/etc", "/srv", "/home"].into_iter().for_each(|path| fs.folder(path));
        Database::ALL.into_iter().for_each(|database| fs.file(&text(database.path()), ""));
        old.write(&mut fs);
        old.files(&mut fs, "old", rng);
        let side = |number: u32, name: &str, rng: &mut Rng| {
            let (mut system, mut fs) = (old.clone(), fs.fork(number));
            for count in 0..=rng.below(4) {
                // Some names are the same on both sides, and then not always with the same number.
                let name =
                    if rng.chance(30) { format!("both{}", rng.below(3)) } else { format!("{name}{count}") };
                if system.groups.contains_key(&name) {
                    continue;
                }
                match rng.below(4) {
                    0 => drop(system.group(&name, None, 1000)),
                    1 => system.user(&name, 100),
                    _ => system.user(&name, 1000),
                }
            }
            system.write(&mut fs);
            system.files(&mut fs, name, rng);
            fs
        };
        let (base, clone) = (side(1, "base", rng), side(2, "clone", rng));
        Self { three: Three { old: fs, base, clone } }
    }

    fn moves(&self, rules: &str, hidden: Option<&str>) -> Moves {
        let trees = self.three.map(Fs::tree);
        let contents = Three3(self.three.map(|fs| fs));
        let files = AccountFiles::read(trees.map(|tree| tree), &contents).unwrap();
        let rules = Rules::preset().unwrap().and(rules).unwrap();
        Moves::find(&files, &rules, hidden, || {
            trees.map(|tree| {
                let mut ids = Ids::default();
                ids.add(tree);
                ids
            })
        })
    }

    fn plan(&self, rules: &str) -> Plan {
        let moves = self.moves(rules, None);
        let trees = self.three.map(Fs::tree);
        let contents = Three3(self.three.map(|fs| fs));
        let rules = Rules::preset().unwrap().and(rules).unwrap();
        let bases = Pairs::of_bases(&trees.old, &trees.base, true);
        let part = Part { trees: trees.map(|tree| tree), contents: &contents };
        let system = merge::System::of(&[part], &rules, "base", &moves).unwrap();
        let (plan, findings) = (system.plan(part, &bases).unwrap(), system.findings());
        let Plan { conflicts, settled, renumbered, .. } = findings;
        Plan {
            conflicts: [plan.conflicts, conflicts].concat(),
            settled: [plan.settled, settled].concat(),
            renumbered,
            ..plan
        }
    }

    fn merged(&self) -> (Plan, Fs) {
        let plan = self.plan("");
        let fs = Executor::run(self.three.map(|fs| fs), &plan.steps).unwrap();
        (plan, fs)
    }
}

fn judged(fs: &Fs) -> String {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = Database::ALL[..4]
        .iter()
        .map(|database| {
            let path = folder.path().join(text(&database.path()[5..]));
            fs::write(&path, &fs.inodes[&fs.find(database.path()).unwrap()].content).unwrap();
            path
        })
        .collect();
    let mut said = String::new();
    for (program, arguments) in [("pwck", ["-r", "-q"]), ("grpck", ["-r", "-r"])] {
        let files = if program == "pwck" { [&paths[0], &paths[2]] } else { [&paths[1], &paths[3]] };
        let mut command = Command::new(program);
        let output = command.args(arguments).args(files).env("LC_ALL", "C").output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
        said += &String::from_utf8(output.stdout).unwrap();
    }
    let wrong = ["no matching", "duplicate", "invalid", "already"];
    said.lines()
        .filter(|line| wrong.iter().any(|word| line.contains(word)))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Ranges of subuid that overlap.
fn overlaps(fs: &Fs, path: &[u8]) -> Vec<String> {
    let file = text(&fs.inodes[&fs.find(path).unwrap()].content);
    let mut ranges: Vec<(u64, u64, &str)> = file
        .lines()
        .map(|line| {
            let parts: Vec<&str> = line.split(':').collect();
            let start: u64 = parts[1].parse().unwrap();
            (start, start + parts[2].parse::<u64>().unwrap(), parts[0])
        })
        .collect();
    ranges.sort_unstable();
    ranges
        .windows(2)
        .filter(|pair| pair[1].0 < pair[0].1 && pair[0].2 != pair[1].2)
        .map(|pair| format!("{pair:?}"))
        .collect()
}

#[test]
fn whose_a_file_is_stays_true_and_no_account_of_the_clone_moves() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let (mut moved, mut acls) = (0, 0);
    for round in 0..200 {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let case = Case::new(&mut rng);
        let (plan, fs) = case.merged();
        let context = format!("seed {seed} round {round}: {:?}", plan.renumbered);
        assert!(plan.open().is_empty(), "{context}: {:?}", plan.conflicts);
        assert_eq!(judged(&fs), "", "{context}");
        assert_eq!(overlaps(&fs, b"/etc/subuid"), Vec::<String>::new(), "{context}");
        assert_eq!(overlaps(&fs, b"/etc/subgid"), Vec::<String>::new(), "{context}");
        let mut expected = owners(&case.three.base);
        expected.extend(owners(&case.three.clone));
        assert_eq!(owners(&fs), expected, "{context}");
        let [clone, merged] = [names(&case.three.clone), names(&fs)];
        for (clone, merged) in clone.iter().zip(&merged) {
            for (id, names) in clone {
                assert_eq!(merged.get(id), Some(names), "{context}: number {id}");
            }
        }
        moved += u32::from(!plan.renumbered.is_empty());
        acls += case.three.base.inodes.values().filter(|inode| inode.xattrs.contains_key(ACL)).count();
    }
    assert!(moved > 60 && acls > 60, "seed {seed}: {moved}, {acls}");
}

/// A base with the user `bob`, and a clone with the user `alice`, both made by `useradd`.
fn two_users() -> Case {
    let mut fs = Fs::new();
    ["/etc", "/srv", "/home"].into_iter().for_each(|path| fs.folder(path));
    Database::ALL.into_iter().for_each(|database| fs.file(&text(database.path()), ""));
    System::default().write(&mut fs);
    let side = |number: u32, name: &str| {
        let (mut system, mut fs) = (System::default(), fs.fork(number));
        system.user(name, 1000);
        system.write(&mut fs);
        let home = fs.make(format!("/home/{name}").as_bytes(), FileKind::Directory);
        (home.uid, home.gid) = (1000, 1000);
        fs
    };
    let (base, clone) = (side(1, "bob"), side(2, "alice"));
    Case { three: Three { old: fs, base, clone } }
}

#[test]
fn a_group_that_stands_alone_does_not_take_the_number_of_a_users_own() {
    let mut fs = Fs::new();
    ["/etc", "/srv", "/home"].into_iter().for_each(|path| fs.folder(path));
    Database::ALL.into_iter().for_each(|database| fs.file(&text(database.path()), ""));
    System::default().write(&mut fs);
    let side = |number: u32, group: &str, user: &str| {
        let (mut system, mut fs) = (System::default(), fs.fork(number));
        system.groups.extend([(group.to_owned(), 1001), (user.to_owned(), 1002)]);
        system.users.insert(user.to_owned(), [1002, 1002]);
        system.write(&mut fs);
        for (path, uid, gid) in [(format!("/srv/{group}"), 0, 1001), (format!("/home/{user}"), 1002, 1002)] {
            let inode = fs.make(path.as_bytes(), FileKind::Directory);
            (inode.uid, inode.gid) = (uid, gid);
        }
        fs
    };
    let (base, clone) = (side(1, "devs", "bob"), side(2, "ops", "alice"));
    let (mut expected, of_clone) = (owners(&base), owners(&clone));
    expected.extend(of_clone);
    let case = Case { three: Three { old: fs, base, clone } };
    let (plan, merged) = case.merged();
    assert!(plan.open().is_empty(), "{:?}", plan.conflicts);
    assert_eq!(plan.renumbered.len(), 3, "{:?}", plan.renumbered);
    let [users, groups] = names(&merged);
    assert!(users.values().chain(groups.values()).all(|names| names.len() == 1), "{users:?} {groups:?}");
    assert_eq!(owners(&merged), expected);
    assert_eq!(judged(&merged), "");
    // The judge sees a name that stands there twice.
    let mut twice = merged;
    let passwd = content(&twice, "/etc/passwd");
    twice.write(b"/etc/passwd", format!("{passwd}bob:x:1200:1200::/:/bin/sh\n").as_bytes());
    assert_ne!(judged(&twice), "");
}

#[test]
fn a_group_follows_its_user_only_to_a_number_that_no_other_group_has() {
    let mut fs = Fs::new();
    ["/etc", "/srv", "/home"].into_iter().for_each(|path| fs.folder(path));
    Database::ALL.into_iter().for_each(|database| fs.file(&text(database.path()), ""));
    System::default().write(&mut fs);
    // In the clone bob has another number, and none of the groups with his two numbers is his.
    let base = [("bob", Some([1002, 1002]), 1002)];
    let clone = [("bob", Some([1005, 1007]), 1007), ("alice", None, 1002), ("staff", None, 1005)];
    let side = |number: u32, accounts: &[(&str, Option<[u32; 2]>, u32)]| {
        let (mut system, mut fs) = (System::default(), fs.fork(number));
        for (name, user, group) in accounts {
            // His group has his name in the base alone.
            let group_name = if *group == 1007 { "guests" } else { name };
            system.groups.insert(group_name.to_owned(), *group);
            system.users.extend(user.map(|ids| ((*name).to_owned(), ids)));
        }
        system.write(&mut fs);
        for (name, user, group) in accounts {
            let inode = fs.make(format!("/srv/{number}-{name}").as_bytes(), FileKind::Regular);
            (inode.uid, inode.gid) = (user.map_or(0, |ids| ids[0]), *group);
        }
        fs
    };
    let (base, clone) = (side(1, &base), side(2, &clone));
    let (mut expected, of_clone) = (owners(&base), owners(&clone));
    expected.extend(of_clone);
    let case = Case { three: Three { old: fs, base, clone } };
    let (plan, merged) = case.merged();
    assert_eq!(plan.renumbered.len(), 2, "{:?}", plan.renumbered);
    let [users, groups] = names(&merged);
    let holders = |names: &BTreeMap<u32, BTreeSet<String>>, id: u32| {
        names.get(&id).map(|names| names.iter().cloned().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(holders(&users, 1005).as_deref(), Some("bob"));
    assert_eq!(holders(&groups, 1005).as_deref(), Some("staff"), "{:?}", plan.renumbered);
    assert_eq!(holders(&groups, 1002).as_deref(), Some("alice"), "{:?}", plan.renumbered);
    assert!(users.values().chain(groups.values()).all(|names| names.len() == 1), "{users:?} {groups:?}");
    assert_eq!(owners(&merged), expected);
    assert_eq!(judged(&merged), "");
}

fn content(fs: &Fs, path: &str) -> String {
    text(&fs.inodes[&fs.find(path.as_bytes()).unwrap()].content)
}

#[test]
fn two_useradds_are_settled_and_told() {
    let (plan, fs) = two_users().merged();
    assert_eq!(plan.conflicts, []);
    assert!(
        content(&fs, "/etc/passwd")
            .ends_with("bob:x:1001:1001::/home/bob:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")
    );
    assert!(content(&fs, "/etc/group").ends_with("bob:x:1001:\nalice:x:1000:\n"));
    assert_eq!(content(&fs, "/etc/subuid"), "bob:165536:65536\nalice:100000:65536\n");
    assert_eq!(content(&fs, "/etc/subgid"), content(&fs, "/etc/subuid"));
    let home = &fs.inodes[&fs.find(b"/home/bob").unwrap()];
    assert_eq!((home.uid, home.gid), (1001, 1001));
    assert_eq!(
        plan.renumbered,
        [
            "passwd: bob, new in the base, has number 1001 in place of 1000, with its files: 1000 is alice's in the clone",
            "group: bob, new in the base, has number 1001 in place of 1000, with its files: 1000 is alice's in the clone",
            "subuid, subgid: the range of bob, new in the base, begins at 165536 in place of 100000, which alice has in the \
         clone",
        ]
    );
    assert!(plan.kept.contains(&b"/home/bob"[..]), "{:?}", plan.kept);
}

fn refused(case: &Case, rules: &str, why: &str) {
    let plan = case.plan(rules);
    let said: Vec<&str> = plan.open().iter().map(|conflict| conflict.detail.as_str()).collect();
    assert!(!said.is_empty() && said.iter().any(|said| said.contains(why)), "{why}: {said:#?}");
}

#[test]
fn what_cannot_be_moved_without_leaving_something_behind_stays_a_conflict() {
    let mut case = two_users();
    case.three.old.make(b"/srv/orphan", FileKind::Regular).uid = 1000;
    refused(&case, "", "files of the old base have it already");

    let mut case = two_users();
    let mut capability = vec![1, 0, 0, 3];
    capability.extend([0; 16]);
    capability.extend(1000_u32.to_le_bytes());
    let tool = case.three.base.make(b"/srv/tool", FileKind::Regular);
    tool.xattrs.insert(b"security.capability".to_vec(), capability);
    refused(&case, "", "capability");

    let mut case = two_users();
    case.three.base.write(b"/etc/subgid", b"1000:100000:65536\n");
    refused(&case, "", "names it by its number");

    let mut case = two_users();
    case.three.base.make(b"/srv/container", FileKind::Regular).uid = 100_007;
    refused(&case, "", "files of the base have numbers of it");

    let case = two_users();
    let moves = case.moves("", Some("partition 4"));
    assert!(moves.is_empty());
    assert_eq!(moves.refused.len(), 3);
    assert!(moves.refused.iter().all(|(_, why)| why.contains("partition 4")), "{:?}", moves.refused);
}

#[test]
fn a_rule_that_lets_nobody_win_keeps_the_conflict() {
    let case = two_users();
    assert!(case.moves("fail /etc/**", None).is_empty());
    refused(&case, "fail /etc/**", "number 1000 is bob in the base and alice in the clone");
    assert!(!case.moves("base /etc/**", None).is_empty(), "whoever wins, the base's move");
}

#[test]
fn numbers_with_a_meaning_of_their_own_are_never_moved() {
    let mut case = two_users();
    for (fs, name) in [(&mut case.three.base, "one"), (&mut case.three.clone, "two")] {
        fs.write(b"/etc/group", format!("root:x:0:\n{name}:x:42:\n").as_bytes());
        fs.write(b"/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    }
    refused(&case, "", "number 42 is one in the base and two in the clone");
}

#[test]
fn damaged_databases_move_nothing_that_breaks_and_nothing_panics() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    let rules = Rules::preset().unwrap();
    let parts = [
        "a",
        "b",
        ":",
        ":",
        "x:",
        "1000",
        "1001",
        "100000",
        "4294967295",
        ",",
        "\n",
        "\n",
        "+",
        "#",
        "\u{fc}",
    ];
    let lines = [
        "a:x:1000:1000::/:/s\n",
        "b:x:1000:1001::/:/s\n",
        "a:x:1000:\n",
        "c:x:1001:\n",
        "a:100000:65536\n",
        "b:100100:4294967295\n",
    ];
    for _ in 0..2000 {
        let mut file = || -> Vec<u8> {
            let any = if rng.chance(50) { &lines[..] } else { &parts[..] };
            (0..rng.below(12)).flat_map(|_| rng.pick(any).bytes().collect::<Vec<u8>>()).collect()
        };
        let files = AccountFiles(std::array::from_fn(|_| Three { old: file(), base: file(), clone: file() }));
        let moves = Moves::find(&files, &rules, None, || Three {
            old: Ids::default(),
            base: Ids::default(),
            clone: Ids::default(),
        });
        for (three, database) in files.0.iter().zip(Database::ALL) {
            let base = moves.text(database, &three.base);
            assert_eq!(
                base.iter().filter(|byte| **byte == b'\n').count(),
                three.base.iter().filter(|byte| **byte == b'\n').count(),
                "seed {seed}"
            );
            merge(database, Three { old: &three.old, base: &base, clone: &three.clone }, Winner::Clone)
                .unwrap();
        }
    }
}
