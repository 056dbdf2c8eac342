//! A system whose files lie on several partitions merges as if they lay on one.
//!
//! Needs root: the filesystems are changed by the kernel.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

mod common {
    pub mod cli;
    pub mod ext;
    pub mod rebased;
}

use common::cli::Shed;
use common::cli::store::{file_digest, must};
use common::ext::{Image, Mount};
use common::rebased::clone_with;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;
const VAR: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const SRV: &str = "bbbbbbbb-0000-4000-8000-00000000000b";
/// Of each partition: where it is mounted, its size in MiB, and what mke2fs is told beside that.
type Part = (&'static str, usize, &'static [&'static str]);
const APART: [Part; 5] = [
    ("", 16, &[]),
    ("/home", 8, &["-L", "home"]),
    ("/var", 12, &["-U", VAR]),
    ("/srv/www", 8, &[]),
    // The table does not name it.
    ("/partition-5", 8, &[]),
];
/// Those of [`TYPES`].
const TYPED: [Part; 4] = [("", 16, &[]), ("/home", 8, &[]), ("/srv", 8, &[]), ("/var", 12, &[])];
const TYPES: [&str; 4] = ["8304", "8302", "8306", "8310"];
const TOGETHER: [Part; 1] = [("", 32, &[])];

/// One version of a system's files.
struct System {
    parts: &'static [Part],
    images: Vec<Image>,
}

/// A system's files while they are mounted.
struct Mounted<'a> {
    parts: &'a [Part],
    mounts: Vec<Mount>,
}

impl System {
    fn new(parts: &'static [Part]) -> Self {
        let image = |(_, mib, options): &Part| {
            Image::new(*mib as u64, &[&["-t", "ext4", "-b", "1024"], *options].concat())
        };
        let new = Self { parts, images: parts.iter().map(image).collect() };
        let mounted = new.mounted();
        for (at, _, _) in &APART {
            fs::create_dir_all(mounted.place(at)).unwrap();
        }
        drop(mounted);
        new
    }

    fn copy(&self) -> Self {
        let copy = Self::new(self.parts);
        for (from, to) in self.images.iter().zip(&copy.images) {
            fs::copy(from.path(), to.path()).unwrap();
        }
        copy
    }

    fn mounted(&self) -> Mounted<'_> {
        Mounted { parts: self.parts, mounts: self.images.iter().map(|image| image.mount(true)).collect() }
    }

    /// Where each partition begins, in MiB, and the disk's size.
    fn starts(&self) -> Vec<usize> {
        let mut starts = vec![1];
        self.parts.iter().for_each(|(_, mib, _)| starts.push(starts[starts.len() - 1] + mib));
        starts
    }

    fn table(&self, path: &Path) {
        let starts = self.starts();
        fs::write(path, vec![0; (starts[self.parts.len()] + 1) * MIB]).unwrap();
        let mut arguments = Vec::new();
        for (number, (start, (_, mib, _))) in (1..).zip(starts.iter().zip(self.parts)) {
            arguments.push(format!("-n{number}:{start}M:+{mib}M"));
        }
        if self.parts == TYPED {
            arguments.extend((1..).zip(TYPES).map(|(number, kind)| format!("-t{number}:{kind}")));
        } else if self.parts.len() > 1 {
            arguments.push(format!("-u4:{SRV}"));
        }
        arguments.push(path.to_str().unwrap().to_owned());
        must("sgdisk", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }

    fn disk(&self, table: &[u8]) -> Vec<u8> {
        let mut disk = table.to_vec();
        for (start, image) in self.starts().into_iter().zip(&self.images) {
            let bytes = fs::read(image.path()).unwrap();
            disk[start * MIB..][..bytes.len()].copy_from_slice(&bytes);
        }
        disk
    }
}

impl Mounted<'_> {
    /// Where a path of the system is.
    fn place(&self, path: &str) -> PathBuf {
        let below = |at: &str| path.strip_prefix(at).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let all = self.parts.iter().zip(&self.mounts);
        let found = all.filter_map(|((at, _, _), mount)| Some((at.len(), mount, below(at)?)));
        let (_, mount, rest) = found.max_by_key(|(len, _, _)| *len).unwrap();
        mount.path(rest.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let place = self.place(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }

    fn write_all(&self, files: &[(&str, &str)]) {
        files.iter().for_each(|(path, text)| self.write(path, text));
    }

    /// What all files of the system hold.
    fn files(&self) -> BTreeMap<String, String> {
        fn walk(folder: &Path, above: &str, found: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = format!("{above}/{}", entry.file_name().into_string().unwrap());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), &path, found);
                } else if let Ok(text) = fs::read_to_string(entry.path()) {
                    found.insert(path, text);
                }
            }
        }
        let mut found = BTreeMap::new();
        for ((at, _, _), mount) in self.parts.iter().zip(&self.mounts) {
            walk(&mount.at, at, &mut found);
        }
        found
    }
}

/// A base of two versions, and a clone of the first.
struct Case {
    shed: Shed,
    parts: &'static [Part],
    bases: Vec<blake3::Hash>,
}

impl Case {
    fn new(
        parts: &'static [Part],
        old: &[(&str, &str)],
        base: &[(&str, &str)],
        clone: &[(&str, &str)],
    ) -> Self {
        Self::with(parts, old, base, clone, |_| {})
    }

    /// The same, of an old base that `make` has finished.
    fn with(
        parts: &'static [Part],
        old: &[(&str, &str)],
        base: &[(&str, &str)],
        clone: &[(&str, &str)],
        make: impl FnOnce(&System),
    ) -> Self {
        let shed = Shed::new();
        let was = System::new(parts);
        was.mounted().write_all(old);
        make(&was);
        let (new, mine) = (was.copy(), was.copy());
        new.mounted().write_all(base);
        mine.mounted().write_all(clone);
        let table = shed.path("table");
        was.table(&table);
        let table = fs::read(table).unwrap();
        for (system, arguments) in [(&was, ["--name", "os"]), (&new, ["--update", "os"])] {
            let path = shed.path("image");
            fs::write(&path, system.disk(&table)).unwrap();
            shed.ok(&[&["import", path.to_str().unwrap(), "--format", "raw"], &arguments[..]].concat());
        }
        clone_with(&shed, "web", &was.disk(&table), &mine.disk(&table));
        let bases = digests(&shed);
        Self { shed, parts, bases }
    }

    fn plan(&self, rules: &str) -> Value {
        let file = self.rules(rules);
        let arguments = ["rebase", "web", "--onto", "os@2", "--plan", "--rules", file.to_str().unwrap()];
        let output = self.shed.output(&[&arguments[..], &["--json"]].concat());
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        plan[0]["rebase"]["merge"].clone()
    }

    fn rules(&self, rules: &str) -> PathBuf {
        let file = self.shed.path("rules");
        fs::write(&file, rules).unwrap();
        file
    }

    fn merged(&self, rules: &str) -> BTreeMap<String, String> {
        let file = self.rules(rules);
        self.shed.ok(&["rebase", "web", "--onto", "os@2", "--rules", file.to_str().unwrap()]);
        let out = self.shed.path("out");
        self.shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw", "--force"]);
        let (disk, system) = (fs::read(out).unwrap(), System::new(self.parts));
        for ((start, (_, mib, _)), image) in system.starts().into_iter().zip(self.parts).zip(&system.images) {
            fs::write(image.path(), &disk[start * MIB..][..mib * MIB]).unwrap();
            image.assert_clean("merged");
        }
        assert_eq!(digests(&self.shed), self.bases);
        system.mounted().files()
    }
}

fn digests(shed: &Shed) -> Vec<blake3::Hash> {
    let files = ["1/disk.raw", "2/disk.qcow2"].map(|file| shed.root().join("bases/os").join(file));
    files.iter().map(|file| file_digest(file)).collect()
}

fn fstab() -> String {
    format!(
        "UUID=00000000-1111-2222-3333-444444444444 / ext4 defaults 0 1\nLABEL=home /home ext4\n\
         UUID={} /var/ ext4\nPARTUUID={SRV} /srv/www ext4\n",
        VAR.to_uppercase()
    )
}

fn status(version: &str) -> String {
    format!(
        "Package: tool\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\nDescription: a tool\n\n"
    )
}

const LIST: &str = "/.\n/usr\n/usr/bin\n/usr/bin/tool\n";
const LONGER: &str = "/.\n/usr\n/usr/bin\n/usr/bin/tool\n/usr/bin/more\n";

/// All kinds of things that are known by a path of the whole system.
fn case(parts: &'static [Part]) -> Case {
    with_table(parts, "/etc/fstab", &fstab())
}

/// The same, with a table of mounts in a file.
fn with_table(parts: &'static [Part], file: &str, table: &str) -> Case {
    let (fstab, [first, second, third]) = (table, ["1", "2", "3"].map(status));
    let old = [
        (file, fstab),
        ("/etc/systemd/system/x.service", "x\n"),
        ("/etc/conf", "a\nb\nc\nd\ne\n"),
        ("/home/ann/notes", "old\n"),
        ("/home/ann/.cache/x", "old\n"),
        ("/srv/www/index", "old\n"),
        ("/partition-5/etc/passwd", "old\n"),
        ("/usr/bin/tool", "tool 1\n"),
        ("/var/lib/dpkg/status", &first),
        ("/var/lib/dpkg/info/tool.list", LIST),
        ("/var/log/messages", "old\n"),
        ("/var/lib/systemd/catalog/database", "old\n"),
        ("/var/lib/service/state", "old\n"),
    ];
    let base = [
        ("/etc/conf", "A\nb\nc\nd\ne\n"),
        ("/home/ann/notes", "base\n"),
        ("/home/ann/.cache/x", "base\n"),
        ("/srv/www/index", "base\n"),
        ("/partition-5/etc/passwd", "base\n"),
        ("/usr/bin/tool", "tool 2\n"),
        ("/var/lib/dpkg/status", &second),
        ("/var/log/messages", "base\n"),
        ("/var/lib/systemd/catalog/database", "base\n"),
        ("/var/lib/service/state", "base\n"),
    ];
    let clone = [
        ("/etc/conf", "a\nb\nc\nd\nE\n"),
        ("/home/ann/notes", "clone\n"),
        ("/home/ann/.cache/x", "clone\n"),
        ("/srv/www/index", "clone\n"),
        ("/partition-5/etc/passwd", "clone\n"),
        ("/usr/bin/tool", "tool 3\n"),
        ("/usr/bin/more", "more 3\n"),
        ("/var/lib/dpkg/status", &third),
        ("/var/lib/dpkg/info/tool.list", LONGER),
        ("/var/log/messages", "clone\n"),
        ("/var/lib/systemd/catalog/database", "clone\n"),
        ("/var/lib/service/state", "clone\n"),
    ];
    Case::new(parts, &old, &base, &clone)
}

/// What a report says, in an order of its own.
fn sorted(plan: &Value, part: &str) -> Vec<String> {
    let mut lines: Vec<String> = plan[part].as_array().unwrap().iter().map(ToString::to_string).collect();
    lines.sort();
    lines
}

#[test]
fn files_on_several_partitions_merge_as_if_they_lay_on_one() {
    let rules = "both /home/ann/notes\nclone /srv/www/**\nbase /partition-5/**\n";
    let (apart, together) = (case(&APART), case(&TOGETHER));
    let plans = [apart.plan(rules), together.plan(rules)];
    for part in ["conflicts", "volatile", "settled", "kept", "derived", "packages", "broken"] {
        let [apart, together] = [sorted(&plans[0], part), sorted(&plans[1], part)];
        assert_eq!(apart, together, "{part}");
        assert_eq!(apart.is_empty(), part == "broken", "{part}: {apart:?}");
    }
    let (merged, expected) = (apart.merged(rules), together.merged(rules));
    assert_eq!(merged, expected);
    for (path, text) in [
        ("/etc/conf", "A\nb\nc\nd\nE\n"),
        ("/home/ann/notes", "clone\n"),
        ("/home/ann/notes.os@2", "base\n"),
        ("/srv/www/index", "clone\n"),
        ("/partition-5/etc/passwd", "base\n"),
        // One package's files come from one side, wherever its database is.
        ("/usr/bin/tool", "tool 3\n"),
        ("/usr/bin/more", "more 3\n"),
        ("/var/lib/dpkg/status", &status("3")),
        ("/var/log/messages", "clone\n"),
        ("/var/lib/systemd/catalog/database", "base\n"),
    ] {
        assert_eq!(merged.get(path).map(String::as_str), Some(text), "{path}");
    }
    let unit = &merged["/etc/systemd/system/cowshed-rebuild.service"];
    assert!(unit.contains("journalctl --update-catalog"), "{unit}");
}

#[test]
fn partitions_are_where_their_types_say_when_no_table_does() {
    let rules = "both /home/ann/notes\nclone /srv/www/**\nbase /partition-5/**\n";
    // Without any table, and with one that names the root alone.
    for (file, table) in [("/etc/no-table", "x\n"), ("/etc/fstab", "/dev/vda1 / ext4\n")] {
        let (apart, together) = (with_table(&TYPED, file, table), with_table(&TOGETHER, file, table));
        let plans = [apart.plan(rules), together.plan(rules)];
        for part in ["conflicts", "volatile", "settled", "kept", "derived", "packages"] {
            let [apart, together] = [sorted(&plans[0], part), sorted(&plans[1], part)];
            assert_eq!(apart, together, "{file}: {part}");
            assert!(!apart.is_empty(), "{file}: {part}");
        }
        assert_eq!(apart.merged(rules), together.merged(rules), "{file}");
    }
}

#[test]
fn a_type_says_nothing_when_a_table_or_the_files_of_the_root_say_otherwise() {
    let change = |text| [("/home/ann/notes", text), ("/srv/made", text)];
    let conflicts = |old: &[(&str, &str)], hidden: bool| {
        let (base, clone) = (change("base\n"), change("clone\n"));
        let case = Case::with(&TYPED, old, &base, &clone, |system| {
            if hidden {
                // Something lies below the place where the partition would be mounted.
                let root = system.images[0].mount(true);
                fs::create_dir_all(root.path("home")).unwrap();
                fs::write(root.path("home/here"), "x").unwrap();
            }
        });
        let plan = case.plan("");
        let paths = plan["conflicts"].as_array().unwrap().iter();
        paths.map(|conflict| conflict["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let [notes, made] = change("old\n");
    let table = ("/etc/fstab", "/dev/vda1 / ext4\n/dev/vda2 /data ext4\n");
    assert_eq!(conflicts(&[notes, made, table], false), ["/data/ann/notes", "/srv/made"]);
    assert_eq!(conflicts(&[notes, made], true), ["/partition-2/ann/notes", "/srv/made"]);
    assert_eq!(conflicts(&[notes, made], false), ["/home/ann/notes", "/srv/made"]);
}

#[test]
fn without_a_table_each_filesystem_is_its_own_and_a_lone_one_is_the_root() {
    let change = |text| [("/home/ann/notes", text), ("/etc/made", text)];
    let case = Case::new(&APART, &change("old\n"), &change("base\n"), &change("clone\n"));
    let plan = case.plan("");
    let paths: Vec<&str> = plan["conflicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|conflict| conflict["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/ann/notes", "/etc/made"], "{plan}");
}

#[test]
fn a_guest_that_sleeps_in_a_swap_file_is_refused_by_name() {
    let mut swap = "x".repeat(4096);
    swap.replace_range(4086..4095, "S1SUSPEND");
    let table = fstab() + "/var/swap\\040file none swap sw 0 0\n";
    let old = [("/etc/fstab", &fstab()[..])];
    let asleep = [("/etc/fstab", &table[..]), ("/var/swap file", &swap)];
    let awake = [("/etc/fstab", &table[..]), ("/var/swap file", "SWAPSPACE2")];
    for (base, clone, whose) in [(&awake, &asleep, "the clone"), (&asleep, &awake, "the new base")] {
        let case = Case::new(&APART, &old, base, clone);
        let before = file_digest(&case.shed.delta("web"));
        let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@2"]);
        assert!(
            said.contains(&format!("/var/swap file holds the memory of {whose}, which hibernates")),
            "{said}"
        );
        assert_eq!(file_digest(&case.shed.delta("web")), before);
    }
    assert!(!Case::new(&APART, &old, &awake, &awake).plan("").is_null());
}

#[test]
fn a_guest_that_sleeps_in_a_file_that_no_table_names_is_refused_when_it_was_not_shut_down() {
    let case = Case::new(&TOGETHER, &[("/etc/x", "x\n")], &[("/etc/y", "y\n")], &[]);
    let out = case.shed.path("out");
    case.shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw"]);
    let (old, system) = (fs::read(out).unwrap(), System::new(&TOGETHER));
    let image = &system.images[0];
    fs::write(image.path(), &old[MIB..][..32 * MIB]).unwrap();
    let mount = image.mount(true);
    let mut swap = vec![7; 80 << 10];
    swap[4086..4095].copy_from_slice(b"S1SUSPEND");
    fs::write(mount.path("sleeper"), &swap).unwrap();
    fs::File::open(mount.path("sleeper")).unwrap().sync_all().unwrap();
    let asleep = fs::read(image.path()).unwrap();
    // Whoever is shut down does not sleep, whatever a file says.
    drop(mount);
    let awake = fs::read(image.path()).unwrap();
    for (name, root, sleeps) in [("asleep", asleep, true), ("awake", awake, false)] {
        let mut disk = old.clone();
        disk[MIB..][..32 * MIB].copy_from_slice(&root);
        clone_with(&case.shed, name, &old, &disk);
        let before = file_digest(&case.shed.delta(name));
        if sleeps {
            let said = case.shed.fails(1, &["rebase", name, "--onto", "os@2"]);
            assert!(said.contains("/sleeper holds the memory of the clone, which hibernates"), "{said}");
            assert_eq!(file_digest(&case.shed.delta(name)), before);
        } else {
            case.shed.ok(&["rebase", name, "--onto", "os@2"]);
        }
    }
}
