//! A merge of three filesystems in memory.

use super::memfs::{Bytes, Executor, Fs, Three3, text};
use cowshed::ops::merge::dpkg::Units;
use cowshed::ops::merge::rules::Rules;
use cowshed::ops::merge::tree::Tree;
use cowshed::ops::merge::{Clash, Forced, Input, Pairs, Plan, Three, plan};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// Three filesystems.
#[derive(Clone)]
pub struct Case {
    pub old: Fs,
    pub base: Fs,
    pub clone: Fs,
}

impl Case {
    /// Both sides as the old base, which `make` makes.
    pub fn of(make: impl FnOnce(&mut Fs)) -> Self {
        let mut old = Fs::new();
        make(&mut old);
        Self { base: old.fork(1), clone: old.fork(2), old }
    }

    pub fn swapped(&self) -> Self {
        Self { old: self.old.clone(), base: self.clone.clone(), clone: self.base.clone() }
    }

    pub fn three(&self) -> Three<&Fs> {
        Three { old: &self.old, base: &self.base, clone: &self.clone }
    }

    pub fn plan(&self, rules: &str, related: bool) -> Plan {
        self.planned(rules, related, &HashMap::new(), None)
    }

    /// As [`Case::plan`], of trees that were made before.
    pub fn plan_of(&self, trees: &Three<Tree>, rules: &str) -> Plan {
        let contents = Three3(self.three());
        let rules = Rules::preset().unwrap().and(rules).unwrap();
        let trees = Three { old: &trees.old, base: &trees.base, clone: &trees.clone };
        let forced = HashMap::new();
        let bases = &Pairs::of_bases(trees.old, trees.base, true);
        let input = Input { trees, bases, contents: &contents, rules: &rules, units: None, forced: &forced };
        plan(&input, "base").unwrap()
    }

    pub fn planned(
        &self,
        rules: &str,
        related: bool,
        forced: &HashMap<Bytes, Forced>,
        units: Option<&Units>,
    ) -> Plan {
        let trees = self.three().map(|fs| fs.tree());
        let contents = Three3(self.three());
        let rules = Rules::none().unwrap().and(rules).unwrap();
        let trees = Three { old: &trees.old, base: &trees.base, clone: &trees.clone };
        let bases = &Pairs::of_bases(trees.old, trees.base, related);
        plan(&Input { trees, bases, contents: &contents, rules: &rules, units, forced }, "base").unwrap()
    }

    pub fn run(&self, plan: &Plan) -> Fs {
        Executor::run(self.three(), &plan.steps)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.shown(plan)))
    }

    pub fn merged(&self, rules: &str) -> (Plan, Fs) {
        let plan = self.plan(rules, true);
        let fs = self.run(&plan);
        (plan, fs)
    }

    pub fn shown(&self, plan: &Plan) -> String {
        let mut out = String::new();
        for (name, fs) in [("old", &self.old), ("base", &self.base), ("clone", &self.clone)] {
            writeln!(out, "{name}:\n{}", shown(fs)).unwrap();
        }
        for conflict in &plan.conflicts {
            writeln!(out, "{} {:?} {}", text(&conflict.path), conflict.clash, conflict.detail).unwrap();
        }
        plan.steps.iter().for_each(|step| writeln!(out, "{step:?}").unwrap());
        out
    }
}

pub fn shown(fs: &Fs) -> String {
    let mut out = String::new();
    for (path, ino) in fs.walk() {
        let inode = &fs.inodes[&ino];
        let what = text(&[&inode.content[..], &inode.target].concat());
        let facts =
            (inode.mode, inode.uid, inode.gid, inode.flags, inode.project, inode.device.map(|d| d.minor));
        let xattrs: Vec<_> = inode.xattrs.iter().map(|(name, value)| (text(name), text(value))).collect();
        writeln!(out, "  {} {ino} {:?} {what} {facts:?} {xattrs:?}", text(&path), inode.kind).unwrap();
    }
    out
}

pub fn conflicts(plan: &Plan) -> BTreeSet<(Bytes, Clash)> {
    plan.conflicts.iter().map(|conflict| (root(&conflict.path), conflict.clash)).collect()
}

/// The model's root has no name at all.
pub fn root(path: &[u8]) -> Bytes {
    if path == b"/" { Bytes::new() } else { path.to_vec() }
}
