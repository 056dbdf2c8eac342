//! The plan of a merge against models in memory: random trees, random edits on both sides, and oracles that know less.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod memedits;
    pub mod memfs;
    pub mod mergecase;
    pub mod mergeoracle;
    pub mod rng;
}

use common::memedits::{Editing, Range};
use common::memfs::{Bytes, Fs, ROOT, Seen, text};
use common::mergecase::{Case, conflicts, root, shown};
use common::mergeoracle::{Conflicts, Naive, contents, moved, moved_path};
use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::guestfs::ext4::FileKind;
use cowshed::ops::merge::{Clash, Side};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs a property on many cases; a failure names the seed that plays it again alone.
fn check(range: Range, cases: u64, property: impl Fn(&mut Editing)) {
    let (first, cases) = match seed_from_environment() {
        Some(seed) => (seed, 1),
        None => (fresh_seed() << 20, cases),
    };
    for seed in first..first + cases {
        let run = || property(&mut Editing::new(Rng::new(seed), range));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            println!("COWSHED_SEED={seed} plays this again");
            resume_unwind(panic);
        }
    }
}

fn draw(editing: &mut Editing, most: u64) -> Case {
    let old = editing.tree();
    let (mut base, mut clone) = (old.fork(1), old.fork(2));
    editing.edit(&mut base, most);
    editing.edit(&mut clone, most);
    Case { old, base, clone }
}

const POLICIES: [(&str, Side); 3] = [("", Side::Clone), ("base /**", Side::Base), ("clone /**", Side::Clone)];

#[test]
fn without_moves_the_result_and_the_conflicts_are_those_of_a_merge_by_paths() {
    check(Range::Plain, 5000, |editing| {
        let case = draw(editing, 7);
        for (rules, winner) in POLICIES {
            let (plan, fs) = case.merged(rules);
            let (map, clashes) = Naive::merge(&case.old.map(), &case.base.map(), &case.clone.map(), winner);
            assert_eq!(conflicts(&plan), clashes, "{rules}\n{}", case.shown(&plan));
            assert!(fs.map() == map, "{rules}\n{}result:\n{}\n{map:?}", case.shown(&plan), shown(&fs));
            assert_eq!(plan.open().len(), if rules.is_empty() { plan.conflicts.len() } else { 0 });
        }
    });
}

#[test]
fn when_one_side_changed_nothing_the_result_is_the_other_side() {
    check(Range::All, 4000, |editing| {
        let mut case = draw(editing, 10);
        let clone = std::mem::replace(&mut case.clone, case.old.clone());
        let (plan, _) = case.merged("");
        assert!(plan.steps.is_empty() && plan.conflicts.is_empty(), "{}", case.shown(&plan));
        (case.base, case.clone) = (case.old.clone(), clone);
        let (plan, fs) = case.merged("");
        assert!(plan.conflicts.is_empty(), "{}", case.shown(&plan));
        assert!(fs.map() == case.clone.map(), "{}result:\n{}", case.shown(&plan), shown(&fs));
        assert_eq!(fs.groups(), case.clone.groups(), "{}", case.shown(&plan));
        assert_eq!(fs.times(), case.clone.times(), "{}", case.shown(&plan));
    });
}

#[test]
fn the_same_changes_on_both_sides_are_no_conflict_and_no_work() {
    check(Range::All, 3000, |editing| {
        let mut case = draw(editing, 10);
        case.base = case.clone.clone();
        let (plan, _) = case.merged("");
        assert!(plan.conflicts.is_empty() && plan.steps.is_empty(), "{}", case.shown(&plan));
    });
}

#[test]
fn what_is_merged_without_a_conflict_is_the_same_with_the_sides_swapped() {
    let mut clean = std::cell::Cell::new(0);
    check(Range::All, 5000, |editing| {
        let case = draw(editing, 4);
        let (plan, fs) = case.merged("");
        let (swapped, other) = case.swapped().merged("");
        assert_eq!(plan.conflicts.is_empty(), swapped.conflicts.is_empty(), "{}", case.shown(&plan));
        if plan.conflicts.is_empty() {
            clean.set(clean.get() + 1);
            assert!(fs.map() == other.map(), "{}\n{}\n{}", case.shown(&plan), shown(&fs), shown(&other));
            assert_eq!(fs.groups(), other.groups(), "{}", case.shown(&plan));
        }
    });
    assert!(seed_from_environment().is_some() || *clean.get_mut() > 1000);
}

/// What a side wrote that was not there before.
fn written(case: &Case, side: Side) -> BTreeSet<Bytes> {
    let fs = if side == Side::Base { &case.base } else { &case.clone };
    contents(fs).difference(&contents(&case.old)).cloned().collect()
}

#[test]
fn nothing_that_a_side_wrote_is_lost_without_a_conflict_and_nothing_of_the_winners_ever() {
    check(Range::All, 5000, |editing| {
        let case = draw(editing, 6);
        for (rules, winner) in POLICIES {
            let (plan, fs) = case.merged(rules);
            let there = contents(&fs);
            for side in [Side::Base, Side::Clone] {
                if side == winner || plan.conflicts.is_empty() {
                    let lost: Vec<_> = written(&case, side).difference(&there).map(|c| text(c)).collect();
                    assert!(lost.is_empty(), "{rules} {lost:?}\n{}{}", case.shown(&plan), shown(&fs));
                }
            }
            let kept =
                contents(&case.base).intersection(&contents(&case.clone)).cloned().collect::<BTreeSet<_>>();
            let lost = kept.difference(&there).map(|content| text(content));
            let lost: Vec<_> = lost.filter(|content| content != "same").collect();
            assert!(
                lost.is_empty() || !plan.conflicts.is_empty(),
                "{rules} {lost:?}\n{}{}",
                case.shown(&plan),
                shown(&fs)
            );
            assert_eq!(plan.open().len(), if rules.is_empty() { plan.conflicts.len() } else { 0 });
        }
    });
}

#[test]
fn a_path_in_conflict_is_as_the_winner_has_it() {
    check(Range::Plain, 2500, |editing| {
        // The base moves nothing and the tree has no hardlinks: then a path of the clone is the result's.
        let old = editing.tree();
        let (mut base, mut clone) = (old.fork(1), old.fork(2));
        editing.edit(&mut base, 6);
        editing.range = Range::All;
        editing.edit(&mut clone, 6);
        let case = Case { old, base, clone };
        let (plan, fs) = case.merged("clone /**");
        let (map, there) = (case.clone.map(), fs.map());
        let is_folder = |seen: Option<&Seen>| seen.is_some_and(|seen| seen.kind == FileKind::Directory);
        for conflict in &plan.conflicts {
            let path = root(&conflict.path);
            let (want, is) = (map.get(&path), there.get(&path));
            let same = match (conflict.clash, want, is) {
                (Clash::Content | Clash::Added | Clash::DeletedInBase, Some(want), Some(is)) => {
                    (want.kind, &want.content, &want.target) == (is.kind, &is.content, &is.target)
                }
                (Clash::Name | Clash::Metadata | Clash::Moved, Some(want), Some(is)) => want.kind == is.kind,
                (Clash::Folder, want, is) => is_folder(want) == is_folder(is),
                (Clash::DeletedInClone, _, Some(is)) => case.base.map().get(&path) != Some(is),
                (Clash::DeletedInClone, _, None) => true,
                _ => false,
            };
            assert!(same, "{} {:?}\n{}{}", text(&path), conflict.clash, case.shown(&plan), shown(&fs));
        }
    });
}

/// One move on one side, as the last thing it did: the merge is the one without the move, moved.
#[test]
fn a_single_move_takes_along_what_the_other_side_did() {
    let mut moves = std::cell::Cell::new(0);
    check(Range::Plain, 6000, |editing| {
        let mut case = draw(editing, 5);
        let Some((from, to)) = a_move(editing, &case) else { return };
        let in_clone = editing.rng.chance(50);
        let (map, clashes) = Naive::merge(&case.old.map(), &case.base.map(), &case.clone.map(), Side::Clone);
        let folder = Fs::split(&to).0.to_vec();
        let hindered = |path: &Bytes, clash: Clash| {
            matches!(clash, Clash::Name | Clash::Folder) || *path == from || *path == folder
        };
        if clashes.iter().any(|(path, clash)| hindered(path, *clash)) || !map.contains_key(&folder) {
            return;
        }
        moves.set(moves.get() + 1);
        let side = if in_clone { &mut case.clone } else { &mut case.base };
        side.rename(&from, &to);
        let (plan, fs) = case.merged("");
        let map = moved(map, &from, &to);
        assert!(fs.map() == map, "{} {}\n{}{}", text(&from), text(&to), case.shown(&plan), shown(&fs));
        // A conflict is known by its path in the clone, where it has one.
        let moved: Conflicts = clashes
            .into_iter()
            .map(|(path, clash)| {
                let of_clone = clash != Clash::DeletedInClone;
                (if of_clone == in_clone { moved_path(&path, &from, &to) } else { path }, clash)
            })
            .collect();
        assert_eq!(conflicts(&plan), moved, "{} {}\n{}", text(&from), text(&to), case.shown(&plan));
    });
    assert!(seed_from_environment().is_some() || *moves.get_mut() > 1000);
}

/// Something that is the same object in all three, and a free name in a folder that all three have.
fn a_move(editing: &mut Editing, case: &Case) -> Option<(Bytes, Bytes)> {
    let sides = [&case.old, &case.base, &case.clone];
    let everywhere = |path: &Bytes| {
        let ino = case.old.find(path);
        let same = |fs: &&Fs| {
            fs.find(path) == ino
                && ino.is_some_and(|ino| fs.inodes[&ino].generation == case.old.inodes[&ino].generation)
        };
        sides.iter().all(same)
    };
    let mut all = Editing::paths(&case.old, |_| true);
    all.retain(everywhere);
    let mut folders = Editing::paths(&case.old, |kind| kind == FileKind::Directory);
    folders.retain(everywhere);
    let (from, folder) = (editing.rng.pick(&all).clone(), editing.rng.pick(&folders).clone());
    let below = folder.starts_with(&from);
    (!from.is_empty() && !below).then(|| (from, [&folder[..], b"/moved"].concat()))
}

#[test]
fn a_base_of_other_inodes_is_merged_by_paths() {
    check(Range::Plain, 2000, |editing| {
        let mut case = draw(editing, 6);
        case.base = renumbered(&case.base);
        let plan = case.plan("", false);
        let fs = case.run(&plan);
        let (map, clashes) = Naive::merge(&case.old.map(), &case.base.map(), &case.clone.map(), Side::Clone);
        assert_eq!(conflicts(&plan), clashes, "{}", case.shown(&plan));
        assert!(fs.map() == map, "{}result:\n{}\n{map:?}", case.shown(&plan), shown(&fs));
    });
}

/// The same tree in other inodes, the last one first.
fn renumbered(fs: &Fs) -> Fs {
    let most = fs.inodes.keys().max().unwrap() + 11;
    let number = |ino: u32| if ino == ROOT { ino } else { most - ino };
    let mut other = fs.clone();
    other.inodes.clear();
    for (ino, inode) in &fs.inodes {
        let mut inode = inode.clone();
        inode.generation += 7_000_000;
        inode.children.values_mut().for_each(|child| *child = number(*child));
        other.inodes.insert(number(*ino), inode);
    }
    other
}

#[test]
fn a_plan_is_the_same_each_time() {
    check(Range::All, 300, |editing| {
        let case = draw(editing, 8);
        let (one, other) = (case.plan("", true).steps, case.plan("", true).steps);
        assert_eq!(one, other);
    });
}
