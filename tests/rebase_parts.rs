//! What a merge does with the other parts of a disk: an EFI system partition, and swap.
//!
//! Needs root: the root filesystem is changed by the kernel.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cli;
    pub mod ext;
    pub mod fat;
    pub mod rebased;
    pub mod rng;
}

use common::cli::Shed;
use common::cli::store::{file_digest, must};
use common::ext::{Image, run, tool};
use common::fat::Fat;
use common::rebased::clone_with;
use std::fs;
use std::path::Path;

const MIB: usize = 1 << 20;
/// Where the three partitions begin, in MiB: EFI system partition, swap, root. Then the disk's size.
const STARTS: [usize; 4] = [1, 9, 13, 30];

/// The parts of one version of a disk.
struct Parts {
    esp: Fat,
    swap: Vec<u8>,
    root: Image,
}

impl Parts {
    fn new() -> Self {
        let esp = Fat::new(8 << 10, &["-F", "16", "-s", "1"]);
        esp.make_folder("EFI");
        esp.make_folder("EFI/BOOT");
        esp.put("EFI/BOOT/BOOTX64.EFI", &[1; 5000]);
        esp.put("EFI/BOOT/grub.cfg", b"set timeout=5\n");
        Self { esp, swap: mkswap(&["-L", "old"]), root: Image::new(16, &["-t", "ext4", "-b", "1024"]) }
    }

    fn copy(&self) -> Self {
        let root = Image::new(16, &["-t", "ext4", "-b", "1024"]);
        fs::copy(self.root.path(), root.path()).unwrap();
        Self { esp: self.esp.copy(), swap: self.swap.clone(), root }
    }

    /// The disk of these parts, with the partition table of `table`.
    fn disk(&self, table: &[u8]) -> Vec<u8> {
        let mut disk = table.to_vec();
        let parts =
            [fs::read(self.esp.path()).unwrap(), self.swap.clone(), fs::read(self.root.path()).unwrap()];
        for (start, part) in STARTS.into_iter().zip(parts) {
            disk[start * MIB..][..part.len()].copy_from_slice(&part);
        }
        disk
    }

    fn write_root(&self, path: &str, text: &str) {
        let mount = self.root.mount(true);
        fs::write(mount.path(path), text).unwrap();
    }
}

fn mkswap(options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("swap");
    fs::write(&path, vec![0; 4 * MIB]).unwrap();
    must("chmod", &["600", path.to_str().unwrap()]);
    run(tool("mkswap").args(options).arg(&path));
    fs::read(path).unwrap()
}

/// UUID and label, as libblkid reads them.
fn swap_says(swap: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("swap");
    fs::write(&path, swap).unwrap();
    let output = run(tool("blkid").args(["-p", "-o", "export", "-s", "UUID", "-s", "LABEL"]).arg(&path));
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().filter(|line| !line.starts_with("DEVNAME")).map(|line| format!("{line}\n")).collect()
}

/// A base of two versions, and a clone of the first.
struct Case {
    shed: Shed,
    bases: [blake3::Hash; 2],
}

impl Case {
    /// Both sides change their root as well; `change` gets the new base's parts and the clone's.
    fn new(change: impl FnOnce(&mut Parts, &mut Parts)) -> Self {
        Self::with(|_| {}, change)
    }

    /// The same, of an old base that `make` has finished.
    fn with(make: impl FnOnce(&Parts), change: impl FnOnce(&mut Parts, &mut Parts)) -> Self {
        let shed = Shed::new();
        let table = shed.path("table");
        fs::write(&table, vec![0; STARTS[3] * MIB]).unwrap();
        let arguments = [
            "-n1:1M:+8M",
            "-t1:ef00",
            "-n2:9M:+4M",
            "-t2:8200",
            "-n3:13M:+16M",
            "-t3:8300",
            table.to_str().unwrap(),
        ];
        must("sgdisk", &arguments);
        let table = fs::read(table).unwrap();
        let old = Parts::new();
        make(&old);
        let (mut base, mut clone) = (old.copy(), old.copy());
        base.write_root("by-base", "base\n");
        clone.write_root("by-clone", "clone\n");
        change(&mut base, &mut clone);
        let import = |parts: &Parts, file: &str, more: &[&str]| {
            let path = shed.path(file);
            fs::write(&path, parts.disk(&table)).unwrap();
            shed.ok(&[&["import", path.to_str().unwrap(), "--format", "raw"], more].concat());
        };
        import(&old, "old", &["--name", "os"]);
        import(&base, "new", &["--update", "os"]);
        clone_with(&shed, "web", &old.disk(&table), &clone.disk(&table));
        let bases = digests(&shed);
        Self { shed, bases }
    }

    /// The merged parts.
    fn merged(&self, rules: &str) -> Parts {
        let file = self.shed.path("rules");
        fs::write(&file, rules).unwrap();
        self.shed.ok(&["rebase", "web", "--onto", "os@2", "--rules", file.to_str().unwrap()]);
        let out = self.shed.path("out");
        self.shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw", "--force"]);
        let disk = fs::read(out).unwrap();
        let parts = Parts::new();
        let part = |number: usize, len: usize| &disk[STARTS[number] * MIB..][..len * MIB];
        fs::write(parts.esp.path(), part(0, 8)).unwrap();
        fs::write(parts.root.path(), part(2, 16)).unwrap();
        parts.esp.assert_clean("merged");
        parts.root.assert_clean("merged");
        {
            let mount = parts.root.mount(false);
            assert!(mount.path("by-base").exists() && mount.path("by-clone").exists());
        }
        assert_eq!(digests(&self.shed), self.bases);
        Parts { swap: part(1, 4).to_vec(), ..parts }
    }

    /// What a plan reports.
    fn plan(&self) -> serde_json::Value {
        self.shed.json(&["rebase", "web", "--onto", "os@2", "--plan"])[0]["rebase"]["merge"].clone()
    }

    fn refused(&self, why: &str) {
        let before = file_digest(&self.shed.delta("web"));
        let said = self.shed.fails(1, &["rebase", "web", "--onto", "os@2"]);
        assert!(said.contains(why), "{said}");
        assert_eq!(file_digest(&self.shed.delta("web")), before);
        assert_eq!(fs::read_dir(self.shed.root().join("tmp")).unwrap().count(), 0);
    }
}

fn digests(shed: &Shed) -> [blake3::Hash; 2] {
    // A version that differs in more than half is stored whole.
    let file = |version: &str| {
        let files =
            ["disk.qcow2", "disk.raw"].map(|file| shed.root().join("bases/os").join(version).join(file));
        files.into_iter().find(|file| file.exists()).unwrap()
    };
    ["1", "2"].map(|version| file_digest(&file(version)))
}

fn text(esp: &Fat, path: &str) -> Option<String> {
    esp.files().get(path)?.clone().map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn an_esp_that_both_sides_changed_is_merged_file_by_file() {
    let case = Case::new(|base, clone| {
        base.esp.put("EFI/BOOT/BOOTX64.EFI", &[2; 9000]);
        base.esp.put("EFI/BOOT/a new shim of the base.efi", &[3; 4000]);
        base.esp.put("EFI/BOOT/both.cfg", b"base\n");
        clone.esp.make_folder("EFI/other");
        clone.esp.put("EFI/other/A new loader.efi", &[4; 7000]);
        clone.esp.put("EFI/BOOT/grub.cfg", b"set timeout=9\n");
        clone.esp.put("EFI/BOOT/both.cfg", b"clone\n");
    });
    let plan = case.plan();
    assert_eq!(plan["conflicts"][0]["path"], "/boot/efi/EFI/BOOT/both.cfg", "{plan}");
    assert_eq!(
        (&plan["conflicts"][0]["clash"], &plan["conflicts"][0]["taken"]),
        (&"added".into(), &"base".into())
    );
    assert!(plan["kept"].to_string().contains("/boot/efi/EFI/other/A new loader.efi"), "{plan}");
    let merged = case.merged("");
    let files = merged.esp.files();
    assert_eq!(files["EFI/BOOT/BOOTX64.EFI"], Some(vec![2; 9000]));
    assert_eq!(files["EFI/BOOT/a new shim of the base.efi"], Some(vec![3; 4000]));
    assert_eq!(files["EFI/other/A new loader.efi"], Some(vec![4; 7000]));
    assert_eq!(text(&merged.esp, "EFI/BOOT/grub.cfg").as_deref(), Some("set timeout=9\n"));
    assert_eq!(text(&merged.esp, "EFI/BOOT/both.cfg").as_deref(), Some("base\n"));
    case.shed.ok(&["undo", "web"]);
    let merged = case.merged("both /boot/efi/**\n");
    assert_eq!(text(&merged.esp, "EFI/BOOT/both.cfg").as_deref(), Some("clone\n"));
    assert_eq!(text(&merged.esp, "EFI/BOOT/both.cfg.os@2").as_deref(), Some("base\n"));
}

#[test]
fn a_conflict_on_the_esp_that_no_rule_decides_changes_nothing() {
    let case = Case::new(|base, clone| {
        base.esp.put("EFI/BOOT/grub.cfg", b"base\n");
        clone.esp.remove("EFI/BOOT/grub.cfg");
    });
    let rules = case.shed.path("rules");
    fs::write(&rules, "fail /boot/efi/**\n").unwrap();
    let said = case.shed.fails(1, &["rebase", "web", "--onto", "os@2", "--rules", rules.to_str().unwrap()]);
    assert!(
        said.contains("/boot/efi/EFI/BOOT/grub.cfg: the clone deleted it, the base changed it"),
        "{said}"
    );
    assert_eq!(text(&case.merged("clone /boot/efi/**\n").esp, "EFI/BOOT/grub.cfg"), None);
}

#[test]
fn the_esp_is_where_the_table_or_its_type_says() {
    let places = [
        (Some("LABEL=SYSTEM /efi vfat\n"), "", "/efi"),
        (Some("LABEL=\"SYSTEM\" /boot/esp vfat\n"), "", "/boot/esp"),
        (Some("UUID=C0FF-EE00 /somewhere vfat\n"), "efi", "/somewhere"),
        // The table does not name it.
        (Some("LABEL=OTHER /elsewhere vfat\n"), "efi", "/efi"),
        (Some("/dev/vda3 / ext4\n"), "boot", "/boot"),
        (Some("/dev/vda3 / ext4\n"), "boot/kernels", "/boot/efi"),
        (None, "", "/boot/efi"),
    ];
    for (table, folder, at) in places {
        let make = |parts: &Parts| {
            run(parts.esp.mtools("mlabel").arg("::SYSTEM"));
            let mount = parts.root.mount(true);
            fs::create_dir_all(mount.path(folder)).unwrap();
            fs::create_dir_all(mount.path("etc")).unwrap();
            if let Some(table) = table {
                fs::write(mount.path("etc/fstab"), table).unwrap();
            }
        };
        let case = Case::with(make, |base, clone| {
            base.esp.put("EFI/own.cfg", b"base\n");
            clone.esp.put("EFI/own.cfg", b"clone\n");
        });
        // Where no rule decides it is a conflict, and its path says where it is.
        let output = case.shed.output(&["rebase", "web", "--onto", "os@2", "--plan", "--json"]);
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let path = &plan[0]["rebase"]["merge"]["conflicts"][0]["path"];
        assert_eq!(path, &format!("{at}/EFI/own.cfg"), "{table:?}: {plan}");
    }
}

#[test]
fn names_that_differ_in_case_are_one_and_the_bases_spelling_stays() {
    let case = Case::new(|base, clone| {
        base.esp.put("EFI/new", b"base\n");
        clone.esp.remove("EFI/BOOT/grub.cfg");
        clone.esp.put("EFI/BOOT/Grub.Cfg", b"by the clone\n");
    });
    let merged = case.merged("");
    assert_eq!(text(&merged.esp, "EFI/BOOT/grub.cfg").as_deref(), Some("by the clone\n"));
    assert_eq!(text(&merged.esp, "EFI/new").as_deref(), Some("base\n"));
}

#[test]
fn an_esp_that_cannot_be_merged_is_refused_by_name() {
    Case::new(|base, clone| {
        base.esp.put("EFI/new", b"base\n");
        clone.esp = Fat::new(8 << 10, &["-F", "16", "-s", "1", "-i", "12345678"]);
    })
    .refused("partition 1, which both sides changed: one side has another filesystem there");
    Case::new(|base, clone| {
        base.esp.put("EFI/new", b"base\n");
        clone.esp.put("EFI/mine", b"clone\n");
        // As Linux marks it while it is mounted.
        clone.esp.poke(37, |byte| byte | 1);
    })
    .refused("partition 1, which both sides changed: the clone: a FAT filesystem was not unmounted");
    let full = Case::new(|base, clone| {
        base.esp.put("EFI/new", &vec![1; 5 * MIB]);
        clone.esp.put("EFI/mine", &vec![2; 5 * MIB]);
    });
    full.refused("partition 1: the FAT filesystem has no room");
}

#[test]
fn swap_keeps_the_clones_header_and_nothing_else() {
    let uuid = "11111111-2222-3333-4444-555555555555";
    let case = Case::new(|base, clone| {
        base.swap[MIB..2 * MIB].fill(7);
        clone.swap = mkswap(&["-L", "mine", "-U", uuid]);
        clone.swap[2 * MIB..4 * MIB].fill(9);
    });
    let plan = case.plan();
    let settled = plan["settled"].to_string();
    assert!(settled.contains("partition 2 is swap: its UUID and label are the clone's"), "{settled}");
    let merged = case.merged("");
    assert_eq!(swap_says(&merged.swap), format!("LABEL=mine\nUUID={uuid}\n"));
    assert!(merged.swap[2 * MIB..].iter().all(|byte| *byte == 0), "what was swapped out is not copied");
}

#[test]
fn swap_that_only_the_base_made_anew_is_the_bases() {
    let uuid = "66666666-2222-3333-4444-555555555555";
    let case = Case::new(|base, clone| {
        base.swap = mkswap(&["-L", "new", "-U", uuid]);
        clone.swap[2 * MIB..3 * MIB].fill(9);
    });
    assert_eq!(swap_says(&case.merged("").swap), format!("LABEL=new\nUUID={uuid}\n"));
}

#[test]
fn a_side_that_hibernates_is_refused_by_name_also_when_it_alone_changed_its_swap() {
    for (is_base, word) in [(false, "the clone"), (true, "the new base")] {
        let case = Case::new(|base, clone| {
            let parts = if is_base { base } else { clone };
            parts.swap[4086..4096].copy_from_slice(b"S1SUSPEND\0");
        });
        case.refused(&format!("partition 2 holds the memory of {word}, which hibernates"));
    }
}

/// Numbers of owner and group.
fn owner(path: &Path) -> [u32; 2] {
    use std::os::unix::fs::MetadataExt;
    let facts = fs::symlink_metadata(path).unwrap();
    [facts.uid(), facts.gid()]
}

/// What `useradd` does with the system below `root`.
fn useradd(root: &Path, arguments: &[&str]) {
    run(tool("useradd").arg("--prefix").arg(root).args(arguments));
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn two_plain_useradds_are_merged_and_each_has_its_files() {
    let system = |parts: &Parts, users: &[&[&str]]| {
        let mount = parts.root.mount(true);
        let root = mount.at.clone();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("home")).unwrap();
        if !root.join("etc/passwd").exists() {
            fs::copy("/etc/login.defs", root.join("etc/login.defs")).unwrap();
            for (file, text) in [
                ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
                ("group", "root:x:0:\n"),
                ("shadow", "root:*:19000:0:99999:7:::\n"),
                ("gshadow", "root:*::\n"),
                ("subuid", ""),
                ("subgid", ""),
            ] {
                fs::write(root.join("etc").join(file), text).unwrap();
            }
        }
        for user in users {
            useradd(&root, user);
        }
    };
    let case = Case::with(
        |parts| system(parts, &[&["-m", "ann"]]),
        |base, clone| {
            system(base, &[&["-m", "bob"], &["-r", "daemon-of-base"]]);
            system(clone, &[&["-m", "alice"], &["-r", "daemon-of-clone"]]);
            let mount = base.root.mount(true);
            fs::write(mount.path("home/bob/data"), "bob's\n").unwrap();
            std::os::unix::fs::chown(mount.path("home/bob/data"), Some(1001), Some(1001)).unwrap();
            let mount = clone.root.mount(true);
            fs::write(mount.path("home/alice/data"), "alice's\n").unwrap();
            std::os::unix::fs::chown(mount.path("home/alice/data"), Some(1001), Some(1001)).unwrap();
        },
    );
    let plan = case.plan();
    assert_eq!(plan["renumbered"].as_array().unwrap().len(), 5, "{plan}");
    let line = case.shed.ok(&["rebase", "web", "--onto", "os@2", "--plan"]);
    assert!(line.contains("5 numbers of the base's accounts moved"), "{line}");
    let merged = case.merged("");
    let mount = merged.root.mount(false);
    let passwd = lines(&mount.path("etc/passwd"));
    let of = |name: &str| {
        let line = passwd
            .iter()
            .find(|line| line.starts_with(&format!("{name}:")))
            .unwrap_or_else(|| panic!("{name}"));
        let fields: Vec<&str> = line.split(':').collect();
        [fields[2].parse::<u32>().unwrap(), fields[3].parse::<u32>().unwrap()]
    };
    let groups: Vec<(String, u32)> = lines(&mount.path("etc/group"))
        .iter()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .map(|fields| (fields[0].to_owned(), fields[2].parse().unwrap()))
        .collect();
    let group = |name: &str| {
        let found: Vec<u32> = groups.iter().filter(|(known, _)| known == name).map(|(_, id)| *id).collect();
        assert_eq!(found.len(), 1, "{name}: {groups:?}");
        found[0]
    };
    assert_eq!((of("ann"), of("alice"), of("bob")), ([1000, 1000], [1001, 1001], [1002, 1002]));
    assert_eq!(of("daemon-of-clone"), [999, 999]);
    // None is free behind 999, so it is the first of all.
    assert_eq!(of("daemon-of-base"), [100, 100]);
    for name in ["ann", "alice", "bob", "daemon-of-clone", "daemon-of-base"] {
        assert_eq!(group(name), of(name)[1], "{name}: {groups:?}");
    }
    let mut ids: Vec<u32> = groups.iter().map(|(_, id)| *id).collect();
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{groups:?}");
    for (path, name) in
        [("home/bob", "bob"), ("home/bob/data", "bob"), ("home/alice", "alice"), ("home/alice/data", "alice")]
    {
        assert_eq!(owner(&mount.path(path)), of(name), "{path}");
    }
    for file in ["etc/subuid", "etc/subgid"] {
        let mut starts: Vec<String> =
            lines(&mount.path(file)).iter().map(|line| line.split(':').nth(1).unwrap().to_owned()).collect();
        starts.sort();
        starts.dedup();
        assert_eq!(starts.len(), 3, "{file}");
    }
    let etc = |name: &str| mount.path("etc").join(name);
    for (program, files) in [("pwck", ["passwd", "shadow"]), ("grpck", ["group", "gshadow"])] {
        let output = tool(program).arg("-r").args(files.map(etc)).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let wrong = ["no matching", "duplicate", "invalid", "already"];
        assert!(!wrong.iter().any(|word| said.contains(word)), "{said}");
    }
}
