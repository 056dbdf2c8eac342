//! The plan of a merge, case by case: what is a conflict, what it is called, and what each policy makes of it.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod memfs;
    pub mod mergecase;
}

use common::memfs::{Fs, text};
use common::mergecase::Case;
use cowshed::guestfs::ext4::{Device, FileKind};
use cowshed::ops::merge::dpkg::{Preference, Units, merge};
use cowshed::ops::merge::{Clash, Forced, Side, Three};
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Paths of files and links with what they hold; folders end with a slash.
fn tree(fs: &Fs) -> BTreeMap<String, String> {
    let mut tree = BTreeMap::new();
    for (path, ino) in fs.walk().into_iter().skip(1) {
        let inode = &fs.inodes[&ino];
        let end = if inode.kind == FileKind::Directory { "/" } else { "" };
        tree.insert(text(&path) + end, text(&[&inode.content[..], &inode.target].concat()));
    }
    tree
}

/// The result under `rules` has exactly this, and this is in conflict.
fn gives(case: &Case, rules: &str, want: &[(&str, &str)], clashes: &[(&str, Clash)]) {
    let (plan, fs) = case.merged(rules);
    let want: BTreeMap<_, _> =
        want.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
    assert_eq!(tree(&fs), want, "{rules}\n{}", case.shown(&plan));
    let found: Vec<_> =
        plan.conflicts.iter().map(|conflict| (text(&conflict.path), conflict.clash)).collect();
    let clashes: Vec<_> = clashes.iter().map(|(path, clash)| ((*path).to_owned(), *clash)).collect();
    assert_eq!(found, clashes, "{rules}\n{}", case.shown(&plan));
    let taken = match rules.split(' ').next() {
        Some("base") => Some(Side::Base),
        Some("clone" | "both") => Some(Side::Clone),
        _ => None,
    };
    assert!(plan.conflicts.iter().all(|conflict| conflict.taken == taken), "{rules}");
}

const BASE: &str = "base /**";
const CLONE: &str = "clone /**";
const BOTH: &str = "both /**";

#[test]
fn content_that_both_changed_is_the_winners_and_both_keeps_the_other_beside() {
    let mut case = Case::of(|fs| fs.file("/f", "old"));
    case.base.write(b"/f", b"base");
    case.base.at(b"/f").mode = 0o600;
    case.clone.replace(b"/f", b"clone");
    let clash = [("/f", Clash::Content)];
    gives(&case, "", &[("/f", "clone")], &clash);
    gives(&case, BASE, &[("/f", "base")], &clash);
    gives(&case, CLONE, &[("/f", "clone")], &clash);
    gives(&case, BOTH, &[("/f", "clone"), ("/f.base", "base")], &clash);
    case.clone.file("/f.base", "mine");
    gives(&case, BOTH, &[("/f", "clone"), ("/f.base", "mine"), ("/f.base-2", "base")], &clash);
    let (plan, fs) = case.merged(BOTH);
    assert_eq!(fs.map()[&b"/f".to_vec()].mode, 0o600, "permissions are merged for themselves");
    assert_eq!(plan.open().len(), 0);
    assert_eq!(case.merged("").0.open().len(), 1);
}

#[test]
fn links_that_both_changed_are_a_conflict_of_content_and_have_a_sibling_too() {
    let mut case = Case::of(|fs| fs.symlink("/l", "old"));
    case.base.at(b"/l").target = b"base".to_vec();
    case.clone.at(b"/l").target = b"clone".to_vec();
    gives(&case, BASE, &[("/l", "base")], &[("/l", Clash::Content)]);
    gives(&case, BOTH, &[("/l", "clone"), ("/l.base", "base")], &[("/l", Clash::Content)]);
}

#[test]
fn what_both_added_differently_is_a_conflict_and_the_same_is_none() {
    let mut case = Case::of(|_| {});
    case.base.file("/f", "base");
    case.clone.file("/f", "clone");
    case.base.file("/same", "same");
    case.clone.file("/same", "same");
    let clash = [("/f", Clash::Added)];
    gives(&case, BASE, &[("/f", "base"), ("/same", "same")], &clash);
    gives(&case, CLONE, &[("/f", "clone"), ("/same", "same")], &clash);
    gives(&case, BOTH, &[("/f", "clone"), ("/f.base", "base"), ("/same", "same")], &clash);
    let (_, fs) = case.merged(BASE);
    assert_eq!(fs.at_time(b"/f"), case.base.at_time(b"/f"), "the time goes with the content");
}

#[test]
fn a_deleted_file_that_the_other_side_changed_is_a_conflict_either_way() {
    let mut case = Case::of(|fs| {
        fs.file("/f", "old");
        fs.file("/quiet", "old");
    });
    case.base.remove(b"/f");
    case.base.remove(b"/quiet");
    case.clone.write(b"/f", b"new");
    let clash = [("/f", Clash::DeletedInBase)];
    gives(&case, "", &[("/f", "new")], &clash);
    gives(&case, BASE, &[], &clash);
    gives(&case, CLONE, &[("/f", "new")], &clash);
    let case = case.swapped();
    let clash = [("/f", Clash::DeletedInClone)];
    gives(&case, "", &[], &clash);
    gives(&case, BASE, &[("/f", "new")], &clash);
    gives(&case, CLONE, &[], &clash);
}

#[test]
fn a_file_moved_to_two_places_is_a_conflict() {
    let mut case = Case::of(|fs| fs.file("/f", "f"));
    case.base.rename(b"/f", b"/base");
    case.clone.rename(b"/f", b"/clone");
    gives(&case, BASE, &[("/base", "f")], &[("/clone", Clash::Moved)]);
    gives(&case, CLONE, &[("/clone", "f")], &[("/clone", Clash::Moved)]);
    case.base.rename(b"/base", b"/clone");
    gives(&case, "", &[("/clone", "f")], &[]);
}

#[test]
fn owner_permissions_flags_and_attributes_merge_one_by_one() {
    let mut case = Case::of(|fs| {
        fs.file("/f", "f");
        fs.at(b"/f").xattrs.insert(b"user.old".to_vec(), b"old".to_vec());
        fs.at(b"/f").project = 5;
    });
    case.base.at(b"/f").mode = 0o600;
    case.base.at(b"/f").xattrs.insert(b"user.base".to_vec(), b"base".to_vec());
    case.clone.at(b"/f").uid = 7;
    case.clone.at(b"/f").flags = 0x10;
    case.clone.at(b"/f").project = 0;
    case.clone.at(b"/f").xattrs.remove(&b"user.old"[..]);
    let (plan, fs) = case.merged("");
    assert!(plan.conflicts.is_empty(), "{}", case.shown(&plan));
    let seen = &fs.map()[&b"/f".to_vec()];
    assert_eq!((seen.mode, seen.uid, seen.flags, seen.project), (0o600, 7, 0x10, 0));
    assert_eq!(seen.xattrs.keys().map(|name| text(name)).collect::<Vec<_>>(), ["user.base"]);
    case.clone.at(b"/f").mode = 0o640;
    let (plan, fs) = case.merged(BASE);
    assert_eq!((plan.conflicts[0].clash, &plan.conflicts[0].detail[..]), (Clash::Metadata, "permissions"));
    let seen = &fs.map()[&b"/f".to_vec()];
    assert_eq!((seen.mode, seen.uid), (0o600, 7), "only what clashes is the base's");
}

#[test]
fn two_things_of_one_name_are_a_conflict_and_both_renames_the_bases() {
    let mut case = Case::of(|_| {});
    case.base.folder("/x");
    case.base.file("/x/in", "base");
    case.clone.file("/x", "clone");
    let clash = [("/x", Clash::Name)];
    gives(&case, "", &[("/x", "clone")], &clash);
    gives(&case, CLONE, &[("/x", "clone")], &clash);
    gives(&case, BASE, &[("/x/", ""), ("/x/in", "base")], &clash);
    gives(&case, BOTH, &[("/x", "clone"), ("/x.base/", ""), ("/x.base/in", "base")], &clash);
}

#[test]
fn who_loses_a_name_that_he_moved_to_stays_where_the_winner_has_him() {
    let mut case = Case::of(|fs| {
        fs.file("/a", "a");
        fs.file("/b", "b");
    });
    case.base.rename(b"/a", b"/x");
    case.clone.rename(b"/b", b"/x");
    let clash = [("/x", Clash::Name)];
    gives(&case, BASE, &[("/x", "a"), ("/b", "b")], &clash);
    gives(&case, CLONE, &[("/a", "a"), ("/x", "b")], &clash);
}

#[test]
fn a_folder_deleted_on_one_side_that_gained_a_file_on_the_other_is_a_conflict() {
    let mut case = Case::of(|fs| {
        fs.folder("/d");
        fs.file("/d/f", "f");
    });
    case.base.remove(b"/d");
    case.clone.file("/d/new", "new");
    let clash = [("/d", Clash::Folder)];
    gives(&case, "", &[("/d/", ""), ("/d/new", "new")], &clash);
    gives(&case, CLONE, &[("/d/", ""), ("/d/new", "new")], &clash);
    gives(&case, BOTH, &[("/d/", ""), ("/d/new", "new")], &clash);
    gives(&case, BASE, &[], &clash);
    let case = case.swapped();
    gives(&case, "", &[], &clash);
    gives(&case, CLONE, &[], &clash);
    gives(&case, BOTH, &[], &clash);
    gives(&case, BASE, &[("/d/", ""), ("/d/new", "new")], &clash);
}

#[test]
fn a_file_moved_into_a_folder_that_goes_stays_where_it_was() {
    let mut case = Case::of(|fs| {
        fs.folder("/d");
        fs.file("/f", "f");
    });
    case.base.remove(b"/d");
    case.clone.rename(b"/f", b"/d/f");
    gives(&case, BASE, &[("/f", "f")], &[("/d", Clash::Folder)]);
    gives(&case, CLONE, &[("/d/", ""), ("/d/f", "f")], &[("/d", Clash::Folder)]);
}

#[test]
fn folders_moved_into_each_other_are_where_the_winner_has_them() {
    let mut case = Case::of(|fs| {
        fs.folder("/a");
        fs.file("/a/f", "f");
        fs.folder("/b");
        fs.file("/b/g", "g");
        fs.folder("/b/sub");
    });
    case.base.rename(b"/a", b"/b/a");
    case.clone.rename(b"/b", b"/a/b");
    let base = [("/b/", ""), ("/b/g", "g"), ("/b/sub/", ""), ("/b/a/", ""), ("/b/a/f", "f")];
    let clone = [("/a/", ""), ("/a/f", "f"), ("/a/b/", ""), ("/a/b/g", "g"), ("/a/b/sub/", "")];
    gives(&case, BASE, &base, &[("/a/b", Clash::Moved)]);
    gives(&case, CLONE, &clone, &[("/a", Clash::Moved)]);
    gives(&case, "", &clone, &[("/a", Clash::Moved)]);
}

#[test]
fn rotated_logs_keep_both_sides_changes() {
    let mut case = Case::of(|fs| {
        fs.file("/syslog", "monday");
        fs.file("/other", "other");
    });
    case.clone.rename(b"/syslog", b"/syslog.1");
    case.clone.file("/syslog", "tuesday");
    case.base.write(b"/other", b"changed");
    gives(&case, "", &[("/syslog", "tuesday"), ("/syslog.1", "monday"), ("/other", "changed")], &[]);
    case.clone.rename(b"/syslog.1", b"/syslog.2");
    case.clone.rename(b"/syslog", b"/syslog.1");
    case.clone.file("/syslog", "wednesday");
    let want =
        [("/syslog", "wednesday"), ("/syslog.1", "tuesday"), ("/syslog.2", "monday"), ("/other", "changed")];
    gives(&case, "", &want, &[]);
}

#[test]
fn a_file_swapped_with_another_is_swapped_in_the_result() {
    let mut case = Case::of(|fs| {
        fs.file("/a", "a");
        fs.file("/b", "b");
        fs.folder("/d");
        fs.folder("/e");
        fs.file("/d/f", "f");
        fs.file("/e/g", "g");
    });
    for (one, other) in [("/a", "/b"), ("/d", "/e")] {
        case.clone.rename(one.as_bytes(), b"/t");
        case.clone.rename(other.as_bytes(), one.as_bytes());
        case.clone.rename(b"/t", other.as_bytes());
    }
    case.base.at(b"/a").mode = 0o600;
    case.base.write(b"/d/f", b"changed");
    let want = [("/a", "b"), ("/b", "a"), ("/d/", ""), ("/d/g", "g"), ("/e/", ""), ("/e/f", "changed")];
    gives(&case, "", &want, &[]);
}

#[test]
fn what_is_below_a_moved_folder_follows() {
    let mut case = Case::of(|fs| {
        fs.folder("/d");
        fs.file("/d/f", "f");
        fs.file("/d/g", "g");
        fs.file("/d/h", "h");
    });
    case.clone.rename(b"/d", b"/e");
    case.clone.replace(b"/e/g", b"mine");
    case.base.write(b"/d/f", b"changed");
    case.base.file("/d/new", "new");
    case.base.remove(b"/d/h");
    gives(&case, "", &[("/e/", ""), ("/e/f", "changed"), ("/e/g", "mine"), ("/e/new", "new")], &[]);
    let case = case.swapped();
    gives(&case, "", &[("/e/", ""), ("/e/f", "changed"), ("/e/g", "mine"), ("/e/new", "new")], &[]);
}

#[test]
fn a_hardlink_that_one_side_splits_is_split() {
    let mut case = Case::of(|fs| {
        fs.file("/x", "x");
        let ino = fs.find(b"/x").unwrap();
        fs.link(ino, b"/y");
    });
    case.clone.replace(b"/x", b"mine");
    case.base.write(b"/y", b"changed");
    gives(&case, "", &[("/x", "mine"), ("/y", "changed")], &[]);
    case.base = case.old.fork(1);
    case.base.remove(b"/x");
    case.clone = case.old.fork(2);
    case.clone.remove(b"/y");
    gives(&case, CLONE, &[("/x", "x")], &[("/x", Clash::Moved)]);
    gives(&case, BASE, &[("/y", "x")], &[("/x", Clash::Moved)]);
}

#[test]
fn a_folder_that_becomes_a_link_takes_the_other_sides_changes_to_where_its_content_is() {
    let mut case = Case::of(|fs| {
        fs.folder("/usr");
        fs.folder("/usr/lib");
        fs.folder("/lib");
        fs.file("/lib/a", "a");
        fs.file("/lib/b", "b");
    });
    case.base.rename(b"/lib/a", b"/usr/lib/a");
    case.base.rename(b"/lib/b", b"/usr/lib/b");
    case.base.remove(b"/lib");
    case.base.symlink("/lib", "usr/lib");
    case.clone.write(b"/lib/a", b"mine");
    let below = [("/usr/", ""), ("/usr/lib/", ""), ("/usr/lib/a", "mine"), ("/usr/lib/b", "b")];
    gives(&case, "", &[&below[..], &[("/lib", "usr/lib")]].concat(), &[]);
    case.clone.file("/lib/new", "new");
    let clash = [("/lib", Clash::Folder)];
    gives(&case, BASE, &[&below[..], &[("/lib", "usr/lib")]].concat(), &clash);
    gives(&case, CLONE, &[&below[..], &[("/lib/", ""), ("/lib/new", "new")]].concat(), &clash);
}

#[test]
fn a_device_made_anew_with_another_number_is_another_device() {
    let device = |minor| Some(Device { major: 1, minor });
    let mut case =
        Case::of(|fs| fs.make(b"/dev", FileKind::CharDevice).device = Some(Device { major: 1, minor: 3 }));
    case.clone.remove(b"/dev");
    case.clone.make(b"/dev", FileKind::CharDevice).device = device(5);
    let (plan, fs) = case.merged("");
    assert!(plan.conflicts.is_empty());
    assert_eq!(fs.map()[&b"/dev".to_vec()].device, device(5));
    case.base.remove(b"/dev");
    case.base.make(b"/dev", FileKind::CharDevice).device = device(7);
    let (plan, fs) = case.merged(BASE);
    assert_eq!(plan.conflicts[0].clash, Clash::Name);
    assert_eq!(fs.map()[&b"/dev".to_vec()].device, device(7));
}

#[test]
fn an_unreadable_account_database_is_a_conflict_and_so_is_a_foreign_package_database() {
    let mut case = Case::of(|fs| {
        fs.folder("/etc");
        fs.file("/etc/passwd", "root:x:0:0::/:/bin/sh\n");
        fs.folder("/etc/apk");
        fs.file("/etc/apk/world", "old");
    });
    case.base.write(b"/etc/passwd", b"root:x:0:0::/:/bin/sh\na:x:1000:1000::/:/bin/sh\n");
    case.clone.write(b"/etc/passwd", b"root:x:0:0::/:/bin/sh\nb:x:1000:1000::/:/bin/sh\n");
    case.base.write(b"/etc/apk/world", b"base");
    case.clone.write(b"/etc/apk/world", b"clone");
    let plan = case.plan(CLONE, true);
    let open: Vec<_> = plan.open().iter().map(|conflict| (text(&conflict.path), conflict.clash)).collect();
    assert_eq!(open, [("/etc/apk/world".into(), Clash::Database), ("/etc/passwd".into(), Clash::Database)]);
}

#[test]
fn files_of_a_package_come_from_one_side_and_contested_ones_are_a_conflict() {
    let stanza = |name: &str, version: u32| {
        format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
    };
    let status = [[1, 1], [3, 2], [2, 3]].map(|[p, q]| stanza("p", p) + &stanza("q", q));
    let three = Three { old: status[0].as_bytes(), base: status[1].as_bytes(), clone: status[2].as_bytes() };
    let packages = merge(three, Three { old: b"", base: b"", clone: b"" }, Preference::Higher).unwrap();
    let lists_base: [(&[u8], &[u8]); 1] = [(b"p", b"/p\n/shared\n")];
    let lists_clone: [(&[u8], &[u8]); 2] = [(b"p", b"/p\n"), (b"q", b"/shared\n")];
    let none: Three<&[u8]> = Three { old: b"", base: b"", clone: b"" };
    let units =
        Units::new(&packages, [(Side::Base, &lists_base), (Side::Clone, &lists_clone)], none, &[]).unwrap();
    let mut case = Case::of(|fs| fs.file("/p", "1"));
    case.base.write(b"/p", b"3");
    case.clone.write(b"/p", b"2");
    case.base.file("/shared", "p");
    case.clone.file("/shared", "q");
    let plan = case.planned(CLONE, true, &HashMap::new(), Some(&units));
    let fs = case.run(&plan);
    assert_eq!(tree(&fs)["/p"], "3", "the package is the base's as a whole");
    let found: Vec<_> =
        plan.conflicts.iter().map(|conflict| (text(&conflict.path), conflict.clash)).collect();
    assert_eq!(found, [("/shared".into(), Clash::Added), ("/shared".into(), Clash::Package)]);
}

#[test]
fn rules_decide_over_identity_excluded_and_derived_files() {
    let mut case = Case::of(|fs| {
        for path in ["/id", "/run", "/cache", "/index"] {
            fs.file(path, "old");
        }
    });
    for path in [&b"/id"[..], b"/run", b"/cache", b"/index"] {
        case.base.write(path, b"base");
        case.clone.write(path, b"clone");
    }
    case.base.file("/id2", "base");
    case.clone.file("/run2", "clone");
    let rules = "identity /id*\nexclude /run*\nderived /cache\nrebuild /index";
    gives(&case, rules, &[("/id", "clone"), ("/run", "base"), ("/index", "base")], &[]);
    assert_eq!(case.plan(rules, true).derived.len(), 2);
}

#[test]
fn a_file_that_has_to_be_there_brings_its_folder_back_without_a_word() {
    let mut case = Case::of(|fs| {
        fs.folder("/d");
        fs.folder("/d/e");
        fs.file("/d/e/id", "id");
    });
    case.base.remove(b"/d");
    case.clone.file("/d/e/new", "new");
    let rules = "base /**\nidentity /d/e/id";
    gives(&case, rules, &[("/d/", ""), ("/d/e/", ""), ("/d/e/id", "id"), ("/d/e/new", "new")], &[]);
}

#[test]
fn what_the_databases_say_of_a_path_is_done() {
    let mut case = Case::of(|fs| {
        fs.file("/bytes", "old");
        fs.symlink("/link", "old");
        fs.file("/gone", "old");
    });
    case.base.write(b"/bytes", b"base");
    case.clone.write(b"/bytes", b"clone");
    case.clone.write(b"/gone", b"clone");
    let forced = HashMap::from([
        (b"/bytes".to_vec(), Forced::Bytes(b"merged".to_vec())),
        (b"/link".to_vec(), Forced::Target(b"merged".to_vec())),
        (b"/gone".to_vec(), Forced::Gone),
    ]);
    let plan = case.planned("", true, &forced, None);
    assert!(plan.conflicts.is_empty(), "{}", case.shown(&plan));
    let want =
        [("/bytes", "merged"), ("/link", "merged")].map(|(path, what)| (path.to_owned(), what.to_owned()));
    assert_eq!(tree(&case.run(&plan)), BTreeMap::from(want));
}

#[test]
fn kept_paths_are_those_of_the_result_that_differ_from_the_base() {
    let mut case = Case::of(|fs| {
        fs.folder("/d");
        fs.file("/d/f", "f");
        fs.file("/g", "g");
    });
    case.base.rename(b"/d", b"/e");
    case.clone.write(b"/d/f", b"mine");
    let plan = case.plan("identity /g", true);
    assert_eq!(
        plan.kept.iter().map(|path| text(path)).collect::<Vec<_>>(),
        ["/e/f"],
        "{}",
        case.shown(&plan)
    );
}

/// Folders of 99 files.
fn large(paths: u32) -> Case {
    Case::of(|fs| {
        for folder in 0..paths / 100 {
            let path = format!("/folder{folder}");
            fs.folder(&path);
            for file in 0..99 {
                fs.file_below(&path, &format!("file{file}"), "old");
            }
        }
    })
}

#[test]
fn a_tree_of_25000_paths_with_3000_changes_on_each_side_is_planned_at_once() {
    let mut case = large(25_000);
    for number in 0..3000_u32 {
        let path = format!("/folder{}/file{}", number % 250, number / 250);
        case.base.write(path.as_bytes(), b"base");
        let path = format!("/folder{}/file{}", number % 250, 99 - 1 - number / 250);
        case.clone.write(path.as_bytes(), b"clone");
    }
    let took = timed(&case, "clone /**");
    assert!(took < 2.0, "{took} s");
}

#[test]
fn collisions_and_lost_folders_by_the_ten_thousand_take_no_longer_than_their_number() {
    let mut case = large(20_000);
    case.base.folder("/collide");
    let other = case.clone.clone();
    case.clone = other;
    case.clone.folder("/collide");
    let long = "x".repeat(240);
    for number in 0..20_000 {
        case.base.symlink_below("/collide", &format!("{long}{number}"), "base");
        case.clone.file_below("/collide", &format!("{long}{number}"), "clone");
    }
    for folder in 0..200 {
        case.base.remove_only(format!("/folder{folder}").as_bytes());
        for file in 0..100 {
            case.clone.file_below(&format!("/folder{folder}"), &format!("new{file}"), "new");
        }
    }
    case.base.sweep();
    for rules in [BASE, CLONE, BOTH] {
        let took = timed(&case, rules);
        assert!(took < 60.0, "{took} s");
    }
}

fn timed(case: &Case, rules: &str) -> f64 {
    let trees = case.three().map(|fs| fs.tree());
    let start = Instant::now();
    let plan = case.plan_of(&trees, rules);
    let took = start.elapsed().as_secs_f64();
    println!("{rules}: {} steps, {} conflicts in {took:.3} s", plan.steps.len(), plan.conflicts.len());
    took
}
