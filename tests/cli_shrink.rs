//! A shrunk clone costs the host less, and its guest misses nothing.
//!
//! Needs root: filesystems are changed and looked at by the kernel. `COWSHED_SEED=N` draws other files and other moments.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod cli;
    pub mod ext;
    pub mod rng;
}

use common::cli::Shed;
use common::cli::store::{base_ref, file_digest, must, name, qemu_check};
use common::ext::{Image, run, tool};
use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::store::{Access, CloneOptions, Store};
use cowshed::units::GuestOffset;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// MiB of the disks.
const DISK: u64 = 96;
const OPTIONS: [&str; 4] = ["-t", "ext4", "-b", "4096"];

/// Contents of all files below a folder.
type Files = BTreeMap<String, blake3::Hash>;

fn files(dir: &Path) -> Files {
    let mut found = Files::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(
                files(&entry.path()).into_iter().map(|(file, hash)| (format!("{name}/{file}"), hash)),
            );
        } else {
            found.insert(name, file_digest(&entry.path()));
        }
    }
    found
}

/// A base `os@1` with an ext4 filesystem, and what its disk is.
struct Case {
    shed: Shed,
    old: Image,
    base: blake3::Hash,
}

impl Case {
    fn new(rng: &mut Rng) -> Self {
        let old = Image::new(DISK, &OPTIONS);
        {
            let mount = old.mount(true);
            (0..12).for_each(|n| fs::write(mount.path(format!("base-{n}")), rng.bytes(600_000)).unwrap());
        }
        let shed = Shed::new();
        shed.ok(&["import", old.path().to_str().unwrap(), "--name", "os", "--format", "raw"]);
        let base = file_digest(&shed.root().join("bases/os/1/disk.raw"));
        Self { shed, old, base }
    }

    fn copy(&self) -> Image {
        let copy = Image::new(DISK, &OPTIONS);
        fs::copy(self.old.path(), copy.path()).unwrap();
        copy
    }

    /// A clone whose disk is `disk`. What is the same as in the base is its own too, where `all`.
    fn clone(&self, clone: &str, disk: &Path, all: bool) {
        let store = Store::open(&self.shed.root()).unwrap();
        store.create_clones(&base_ref("os"), &[name(clone)], &CloneOptions::default()).unwrap();
        let open = store.open_clone(&name(clone), Access::Write).unwrap();
        let (old, new) = (fs::read(self.old.path()).unwrap(), fs::read(disk).unwrap());
        for (number, (old, new)) in old.chunks(4096).zip(new.chunks(4096)).enumerate() {
            if old != new || (all && new.iter().any(|byte| *byte != 0)) {
                open.disk.write(new, GuestOffset(number as u64 * 4096)).unwrap();
            }
        }
        open.close().unwrap();
    }

    /// A clone that wrote 40 files, deleted 30 of them and wrote the base's blocks once more.
    fn worn(&self, clone: &str, rng: &mut Rng) -> Files {
        let disk = self.copy();
        {
            let mount = disk.mount(true);
            (0..40).for_each(|n| fs::write(mount.path(format!("own-{n}")), rng.bytes(1_000_000)).unwrap());
        }
        self.clone(clone, disk.path().as_path(), true);
        let kept = {
            let mount = disk.mount(true);
            (0..30).for_each(|n| fs::remove_file(mount.path(format!("own-{n}"))).unwrap());
            files(&mount.at)
        };
        // The blocks of what is deleted stay the clone's own, as without discards.
        let store = Store::open(&self.shed.root()).unwrap();
        let open = store.open_clone(&name(clone), Access::Write).unwrap();
        let new = fs::read(disk.path()).unwrap();
        let mut old = vec![0; 4096];
        for (number, new) in new.chunks(4096).enumerate() {
            let at = GuestOffset(number as u64 * 4096);
            open.disk.read(&mut old, at).unwrap();
            if old != new {
                open.disk.write(new, at).unwrap();
            }
        }
        open.close().unwrap();
        kept
    }

    /// A base `os@1` whose guest has deleted 30 files of 40, and what is left.
    fn worn_base(rng: &mut Rng) -> (Self, Files) {
        let old = Image::new(DISK, &OPTIONS);
        let write = |mount: &Path, rng: &mut Rng| {
            (0..40).for_each(|n| fs::write(mount.join(format!("own-{n}")), rng.bytes(1_000_000)).unwrap());
        };
        {
            write(&old.mount(true).at, rng);
        }
        let kept = {
            let mount = old.mount(true);
            (0..30).for_each(|n| fs::remove_file(mount.path(format!("own-{n}"))).unwrap());
            files(&mount.at)
        };
        let shed = Shed::new();
        shed.ok(&["import", old.path().to_str().unwrap(), "--name", "os", "--format", "raw"]);
        let base = file_digest(&shed.root().join("bases/os/1/disk.raw"));
        (Self { shed, old, base }, kept)
    }

    /// What the kernel finds on a version of the base, which must be in order.
    fn base_files(&self, version: &str) -> Files {
        let out = Image::new(DISK, &OPTIONS);
        self.shed.ok(&["verify", version]);
        self.shed.ok(&["export", version, out.path().to_str().unwrap(), "--format", "raw", "--force"]);
        let found = files(&out.mount(true).at);
        out.assert_clean(version);
        found
    }

    /// Bytes of the host for all versions of the base.
    fn base_bytes(&self) -> u64 {
        run(&mut tool("sync"));
        let said = must("du", &["-s", "--block-size=1", self.shed.root().join("bases").to_str().unwrap()]);
        said.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// What the kernel finds on a clone's disk, which must be in order for everybody.
    fn check(&self, clone: &str) -> Files {
        qemu_check(&self.shed.delta(clone));
        self.shed.ok(&["check", clone]);
        self.content(clone)
    }

    /// As [`Case::check`], of a clone whose last command was killed: clusters may have leaked, until the next one.
    fn check_killed(&self, clone: &str) -> Files {
        let mut theirs = tool("qemu-img");
        theirs.args(["check", "-q", "-f", "qcow2"]).arg(self.shed.delta(clone));
        for mut check in [theirs, self.shed.command(&["check", clone])] {
            let output = check.output().unwrap();
            assert!(matches!(output.status.code(), Some(0 | 3)), "{check:?}: {output:?}");
        }
        self.content(clone)
    }

    fn content(&self, clone: &str) -> Files {
        assert_eq!(file_digest(&self.shed.root().join("bases/os/1/disk.raw")), self.base, "the base changed");
        let out = Image::new(DISK, &OPTIONS);
        self.shed.ok(&["export", clone, out.path().to_str().unwrap(), "--format", "raw", "--force"]);
        let compared = tool("qemu-img")
            .args(["compare", "-q", "-f", "raw", "-F", "qcow2"])
            .args([out.path(), self.shed.delta(clone)])
            .status();
        assert!(compared.unwrap().success(), "QEMU reads {clone} differently");
        // The kernel replays a journal that waits.
        let found = files(&out.mount(true).at);
        out.assert_clean(clone);
        found
    }

    fn host_bytes(&self, clone: &str) -> (u64, u64) {
        let meta = fs::metadata(self.shed.delta(clone)).unwrap();
        (meta.blocks() * 512, meta.len())
    }
}

fn rng() -> Rng {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    Rng::new(seed)
}

#[test]
fn what_was_deleted_and_what_the_base_has_goes_back_to_the_host() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let kept = case.worn("web", &mut rng);
    let delta = file_digest(&case.shed.delta("web"));
    let (blocks, len) = case.host_bytes("web");
    assert!(blocks > 45 * MIB);

    let planned = case.shed.json(&["shrink", "web", "--plan"])[0]["shrink"].clone();
    assert_eq!(file_digest(&case.shed.delta("web")), delta, "a plan changed the clone");
    let text = case.shed.ok(&["shrink", "web", "--dry-run"]);
    assert!(
        text.contains("would be given back") && text.contains("free") && text.contains("as below"),
        "{text}"
    );

    let done = case.shed.json(&["shrink", "web"])[0]["shrink"].clone();
    let number = |report: &serde_json::Value, part: &str| report["needless"][part].as_u64().unwrap();
    for part in ["free", "equal", "zero"] {
        assert_eq!(number(&planned, part), number(&done, part), "{part}");
    }
    assert!(number(&done, "free") > 28 * MIB && number(&done, "equal") > 6 * MIB, "{done}");
    let (blocks_now, len_now) = case.host_bytes("web");
    let dropped = number(&done, "free") + number(&done, "equal") + number(&done, "zero");
    assert!(blocks - blocks_now >= dropped, "{blocks} -> {blocks_now}, {dropped} dropped");
    assert!(len_now < len && len_now < 14 * MIB && blocks_now < 14 * MIB, "{len} -> {len_now}, {blocks_now}");
    assert_eq!(done["after"]["file_bytes"], len_now);
    assert_eq!(case.check("web"), kept);

    let again = case.shed.json(&["shrink", "web"])[0]["shrink"].clone();
    assert_eq!((number(&again, "free"), number(&again, "equal")), (0, 0), "{again}");
    assert_eq!(case.check("web"), kept);
}

#[test]
fn files_that_only_the_journal_knows_survive() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let (disk, crashed) = (case.copy(), case.copy());
    let written = {
        let mount = disk.mount(true);
        for n in 0..60 {
            let path = mount.path(format!("synced-{n}"));
            fs::write(&path, rng.bytes(1_000_000)).unwrap();
            fs::File::open(&path).unwrap().sync_all().unwrap();
        }
        fs::copy(disk.path(), crashed.path()).unwrap();
        files(&mount.at)
    };
    let waiting = crashed.debugfs("stats");
    assert!(waiting.contains("needs_recovery"), "the copy has no journal that waits");
    case.clone("web", crashed.path().as_path(), true);
    // The filesystem is not just left whole: what is behind its files is given back.
    let open = Store::open(&case.shed.root()).unwrap().open_clone(&name("web"), Access::Write).unwrap();
    let end = DISK * MIB - 40 * MIB;
    let mut last = vec![0; 40 << 20];
    open.disk.read(&mut last, GuestOffset(end)).unwrap();
    for (number, block) in
        last.chunks(4096).enumerate().filter(|(_, block)| block.iter().all(|byte| *byte == 0))
    {
        open.disk.write(&vec![0xa5; block.len()], GuestOffset(end + number as u64 * 4096)).unwrap();
    }
    open.close().unwrap();
    let done = case.shed.json(&["shrink", "web"])[0]["shrink"].clone();
    assert_eq!(done["left"], serde_json::json!([]), "{done}");
    assert!(done["needless"]["free"].as_u64().unwrap() > MIB, "{done}");
    let found = case.check("web");
    let lost: Vec<&String> =
        written.iter().filter(|(file, hash)| found.get(*file) != Some(hash)).map(|(file, _)| file).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[test]
fn a_clone_in_use_is_left_and_the_others_are_done() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let kept = case.worn("web", &mut rng);
    case.clone("busy", case.old.path().as_path(), true);
    let store = Store::open(&case.shed.root()).unwrap();
    let open = store.open_clone(&name("busy"), Access::Write).unwrap();
    let said = case.shed.fails(1, &["shrink", "busy"]);
    assert!(said.contains("busy"), "{said}");
    let output = case.shed.output(&["shrink", "--all"]);
    assert_eq!(output.status.code(), Some(1));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(err.lines().count() == 1 && err.contains("busy is left as it is"), "{err}");
    assert!(out.contains("web: ") && out.contains("1 left as they are"), "{out}");
    open.close().unwrap();
    assert!(case.host_bytes("web").0 < 14 * MIB);
    assert_eq!(case.check("web"), kept);
    case.shed.fails(1, &["shrink", "nobody"]);
    case.shed.fails(1, &["shrink", "os@7"]);
}

#[test]
fn a_killed_shrink_loses_nothing_and_is_run_again() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let kept = case.worn("web", &mut rng);
    let saved = fs::read(case.shed.delta("web")).unwrap();
    let start = std::time::Instant::now();
    case.shed.ok(&["shrink", "web"]);
    let whole = start.elapsed();
    let (before, after) = (blake3::hash(&saved), file_digest(&case.shed.delta("web")));
    let mut halfway = 0;
    for _ in 0..12 {
        fs::write(case.shed.delta("web"), &saved).unwrap();
        let mut child = case.shed.command(&["shrink", "web"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rng.below(1000) as f64 / 1000.0));
        child.kill().unwrap();
        let killed = child.wait().unwrap().signal() == Some(libc::SIGKILL);
        let now = file_digest(&case.shed.delta("web"));
        halfway += u32::from(killed && now != before && now != after);
        assert_eq!(case.check_killed("web"), kept);
    }
    println!("{halfway} of 12 were killed in the middle");
    assert!(halfway > 0);
    case.shed.ok(&["shrink", "web"]);
    assert!(case.host_bytes("web").0 < 14 * MIB && case.host_bytes("web").1 < 14 * MIB);
    assert_eq!(case.check("web"), kept);
}

#[test]
fn what_is_not_understood_is_left_whole_and_named() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    let store = Store::open(&shed.root()).unwrap();
    let open = store.open_clone(&name("web"), Access::Write).unwrap();
    let noise = Rng::new(5).bytes(300_000);
    open.disk.write(&noise, GuestOffset(2 * MIB)).unwrap();
    open.close().unwrap();
    shed.ok(&["checkpoint", "web"]);
    let open = store.open_clone(&name("web"), Access::Write).unwrap();
    open.disk.write(&noise, GuestOffset(10 * MIB)).unwrap();
    // The same as the checkpoint has.
    open.disk.write(&noise[..65_536], GuestOffset(2 * MIB)).unwrap();
    open.close().unwrap();
    let before = store_content(&shed, "web");
    let text = shed.ok(&["shrink", "web"]);
    assert!(
        text.contains("64.0 KiB as below")
            && text.contains("left whole")
            && text.contains("checkpoint 1 holds"),
        "{text}"
    );
    assert_eq!(store_content(&shed, "web"), before);
}

fn store_content(shed: &Shed, clone: &str) -> blake3::Hash {
    let out = shed.path("content.raw");
    shed.ok(&["export", clone, out.to_str().unwrap(), "--format", "raw", "--force"]);
    file_digest(&out)
}

#[test]
fn what_du_says_adds_up_and_what_a_plan_promises_is_freed() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    case.worn("web", &mut rng);
    case.clone("db", case.old.path().as_path(), true);
    case.shed.ok(&["checkpoint", "db"]);
    let host = || {
        run(&mut tool("sync"));
        let said = must("du", &["-s", "--block-size=1", case.shed.root().to_str().unwrap()]);
        said.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let report = case.shed.json(&["du", "--reclaimable"]);
    let disks = report["disks"].as_array().unwrap();
    let sum: u64 = disks.iter().map(|disk| disk["own_bytes"].as_u64().unwrap()).sum();
    let (other, total) = (report["other_bytes"].as_u64().unwrap(), report["total_bytes"].as_u64().unwrap());
    assert_eq!((sum + other, total), (total, host()));
    assert!(other < MIB, "{other}");
    let of = |name: &str| disks.iter().find(|disk| disk["name"] == name).unwrap().clone();
    assert!(of("web")["reclaimable_bytes"].as_u64().unwrap() > 34 * MIB, "{report}");
    assert_eq!(of("os@1")["freed_if_deleted"], 0);

    let text = case.shed.ok(&["du"]);
    assert!(text.contains("(the store itself)") && !text.contains("RECLAIMABLE"), "{text}");

    let before = host();
    let promised = case.shed.json(&["rm", "web", "--plan"])[0]["freed_bytes"].as_u64().unwrap();
    assert_eq!(of("web")["freed_if_deleted"], promised);
    case.shed.ok(&["rm", "web"]);
    // The folder that named it may get shorter as well.
    assert!((promised..promised + 8192).contains(&(before - host())), "{before}, {}, {promised}", host());
}

#[test]
fn a_stop_says_that_it_can_be_run_again() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let kept = case.worn("web", &mut rng);
    let saved = fs::read(case.shed.delta("web")).unwrap();
    let mut stopped = 0;
    for wait in [1, 2, 4, 8, 16, 32, 64] {
        fs::write(case.shed.delta("web"), &saved).unwrap();
        let mut command = case.shed.command(&["shrink", "web"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        // SAFETY: a signal to a child that was not waited for yet.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.code() == Some(130) {
            assert!(said.contains("run it again"), "{said}");
            stopped += 1;
        }
        assert_eq!(case.check("web"), kept);
    }
    println!("{stopped} of 7 were stopped");
    assert!(stopped > 0);
}

#[test]
fn what_a_base_has_free_goes_with_the_version_before() {
    let mut rng = rng();
    let (case, kept) = Case::worn_base(&mut rng);
    let before = case.base_bytes();
    let planned = case.shed.json(&["shrink", "os", "--plan"])[0]["shrink"].clone();
    assert_eq!(case.base_bytes(), before, "a plan changed the base");
    let number = |report: &serde_json::Value, part: &str| report[part].as_u64().unwrap();
    let free = number(&planned, "free_bytes");
    assert!(free > 28 * MIB && free == number(&planned, "gives_back_bytes"), "{planned}");
    assert!(planned["new"].is_null() && planned["left"] == serde_json::json!([]), "{planned}");

    let text = case.shed.ok(&["shrink", "os"]);
    assert!(
        text.starts_with("os@1: os@2 reads the same without ") && text.contains("cowshed gc os"),
        "{text}"
    );
    assert_eq!(file_digest(&case.shed.root().join("bases/os/1/disk.raw")), case.base, "the base changed");
    assert!(case.base_bytes() - before < MIB, "{} more", case.base_bytes() - before);
    assert_eq!(case.base_files("os@2"), kept);
    // To take it back is to remove it.
    case.shed.ok(&["rm", "os@2"]);
    assert_eq!(case.base_bytes(), before);
    let done = case.shed.json(&["shrink", "os@1"])[0].clone();
    assert_eq!((&done["base"], &done["shrink"]["new"]["version"]), (&"os@1".into(), &2.into()), "{done}");
    case.shed.ok(&["gc", "os"]);
    assert!(case.shed.fails(1, &["info", "os@1"]).contains("no base os@1"));
    let back = before - case.base_bytes();
    assert!(back + MIB > free, "{back} of {free}");
    assert_eq!(case.base_files("os@2"), kept);

    let again = case.shed.json(&["shrink", "os"])[0]["shrink"].clone();
    assert!(number(&again, "free_bytes") == 0 && again["new"].is_null(), "{again}");
    assert!(case.shed.ok(&["shrink", "os", "--plan"]).contains("no new version is made"));
}

#[test]
fn a_base_with_clones_gives_back_when_they_have_left_it() {
    let mut rng = rng();
    let (case, kept) = Case::worn_base(&mut rng);
    case.shed.ok(&["clone", "os", "web"]);
    let text = case.shed.ok(&["shrink", "os"]);
    assert!(text.contains("web stands on os@1") && text.contains("--onto os"), "{text}");
    let before = case.base_bytes();
    assert!(case.shed.ok(&["gc", "os"]).contains("every version is needed"));
    assert_eq!(case.content("web"), kept);
    case.shed.ok(&["rebase", "web", "--onto", "os", "--strategy", "merge"]);
    let refused = case.shed.fails(1, &["shrink", "os@1"]);
    assert!(refused.contains("only the newest version") && refused.contains("os@2"), "{refused}");
    // The state from before stands on os@1 as long as it can be gone back to.
    case.shed.ok(&["rm", "web", "--checkpoint", "1"]);
    case.shed.ok(&["gc", "os"]);
    assert!(before - case.base_bytes() > 28 * MIB);
    qemu_check(&case.shed.delta("web"));
    let out = Image::new(DISK, &OPTIONS);
    case.shed.ok(&["export", "web", out.path().to_str().unwrap(), "--format", "raw", "--force"]);
    assert_eq!(files(&out.mount(true).at), kept);
}

#[test]
fn files_of_a_base_that_only_its_journal_knows_survive() {
    let mut rng = rng();
    let old = Image::new(DISK, &OPTIONS);
    let crashed = Image::new(DISK, &OPTIONS);
    let written = {
        let mount = old.mount(true);
        (0..45).for_each(|n| fs::write(mount.path(format!("gone-{n}")), rng.bytes(1_000_000)).unwrap());
        run(&mut tool("sync"));
        (0..45).for_each(|n| fs::remove_file(mount.path(format!("gone-{n}"))).unwrap());
        for n in 0..30 {
            let path = mount.path(format!("synced-{n}"));
            fs::write(&path, rng.bytes(1_000_000)).unwrap();
            fs::File::open(&path).unwrap().sync_all().unwrap();
        }
        fs::copy(old.path(), crashed.path()).unwrap();
        files(&mount.at)
    };
    assert!(crashed.debugfs("stats").contains("needs_recovery"), "the copy has no journal that waits");
    let shed = Shed::new();
    shed.ok(&["import", crashed.path().to_str().unwrap(), "--name", "os", "--format", "raw"]);
    let base = file_digest(&shed.root().join("bases/os/1/disk.raw"));
    let case = Case { shed, old, base };
    let done = case.shed.json(&["shrink", "os"])[0]["shrink"].clone();
    assert!(done["free_bytes"].as_u64().unwrap() > MIB && done["left"] == serde_json::json!([]), "{done}");
    let found = case.base_files("os@2");
    let lost: Vec<&String> =
        written.iter().filter(|(file, hash)| found.get(*file) != Some(hash)).map(|(file, _)| file).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[test]
fn a_shrink_of_a_base_that_is_cut_short_leaves_the_base_as_it_was() {
    let mut rng = rng();
    let (case, kept) = Case::worn_base(&mut rng);
    let start = std::time::Instant::now();
    case.shed.ok(&["shrink", "os"]);
    let whole = start.elapsed();
    case.shed.ok(&["rm", "os@2"]);
    let mut short = 0;
    for round in 0..12 {
        let after = whole.mul_f64(rng.below(1000) as f64 / 1000.0);
        let cut = case.shed.cut_short(&["shrink", "os"], after, round % 2 == 0);
        short += u32::from(cut);
        if case.shed.output(&["info", "os@2"]).status.success() {
            assert_eq!(case.base_files("os@2"), kept);
            case.shed.ok(&["rm", "os@2"]);
        }
        assert_eq!(file_digest(&case.shed.root().join("bases/os/1/disk.raw")), case.base, "the base changed");
    }
    println!("{short} of 12 were cut short");
    assert!(short > 0);
    assert_eq!(case.base_files("os@1"), kept);
}

#[test]
fn of_all_clones_only_those_that_are_meant_are_shrunk_several_at_a_time() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let mut kept = Vec::new();
    for clone in ["web-1", "web-2", "web-3", "db"] {
        kept.push((clone, case.worn(clone, &mut rng)));
    }
    let db = file_digest(&case.shed.delta("db"));
    let planned = case.shed.json(&["shrink", "--all", "--only", "web-*", "--plan", "--jobs", "3"]);
    let names = |report: &serde_json::Value| {
        let mut names: Vec<String> =
            report.as_array().unwrap().iter().map(|one| one["clone"].as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(&planned), ["web-1", "web-2", "web-3"]);
    let done = case.shed.json(&["shrink", "--all", "--only", "web-*", "--only", "of=nobody", "--jobs", "3"]);
    assert_eq!(names(&done), names(&planned));
    assert_eq!(file_digest(&case.shed.delta("db")), db, "another clone was shrunk");
    for (clone, kept) in &kept {
        assert_eq!(case.check(clone), *kept, "{clone}");
        assert_eq!(case.host_bytes(clone).0 < 14 * MIB, *clone != "db", "{clone}");
    }
    let refused = case.shed.fails(1, &["shrink", "--all", "--only", "nobody*"]);
    assert!(refused.contains("no clone is meant"), "{refused}");
    case.shed.fails(2, &["shrink", "--only", "web-*"]);
    case.shed.fails(2, &["shrink", "web", "--only", "web-*"]);
}

/// A clone with 30 files of text, and what is on its disk.
fn written(case: &Case, clone: &str, rng: &mut Rng) -> Files {
    let disk = case.copy();
    let kept = {
        let mount = disk.mount(true);
        for n in 0..30 {
            let text: Vec<u8> = rng.bytes(1_000_000).into_iter().map(|byte| b'a' + byte % 16).collect();
            fs::write(mount.path(format!("text-{n}")), text).unwrap();
        }
        files(&mount.at)
    };
    case.clone(clone, disk.path().as_path(), false);
    kept
}

#[test]
fn what_rests_is_compressed_as_much_as_the_plan_says() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let kept = written(&case, "web", &mut rng);
    case.shed.ok(&["shrink", "web"]);
    let (blocks, delta) = (case.host_bytes("web").0, file_digest(&case.shed.delta("web")));
    let planned = case.shed.json(&["shrink", "web", "--recompress", "--plan"])[0]["shrink"].clone();
    assert_eq!(file_digest(&case.shed.delta("web")), delta, "a plan changed the clone");
    let done = case.shed.json(&["shrink", "web", "--recompress"])[0]["shrink"].clone();
    let number = |report: &serde_json::Value, part: &str| report["recompress"][part].as_u64().unwrap();
    let back = blocks - case.host_bytes("web").0;
    let [promised, given] = [&planned, &done].map(|report| number(report, "gives_back_bytes"));
    println!("{promised} promised, {given} given, {back} on the host");
    assert!(promised > 12 * MIB && promised.abs_diff(given) * 20 < given, "{planned}, {done}");
    assert!(back * 20 > given * 19, "{back} of {given}");
    assert_eq!(number(&planned, "full_bytes"), number(&done, "full_bytes"));
    assert_eq!(case.check("web"), kept);
    let text = case.shed.ok(&["shrink", "web", "--recompress", "--plan"]);
    assert!(text.contains("about 0 B by compressing"), "{text}");
    // A shrink of what is compressed drops whole clusters of it.
    assert_eq!(case.check("web"), kept);
    case.shed.ok(&["clone", "os", "old", "--compat"]);
    let refused = case.shed.fails(1, &["shrink", "old", "--recompress"]);
    assert!(refused.contains("zstd"), "{refused}");
    let refused = case.shed.fails(1, &["shrink", "os", "--recompress"]);
    assert!(refused.contains("is a base"), "{refused}");
}

#[test]
fn a_recompression_that_is_cut_short_loses_nothing_and_is_run_again() {
    let mut rng = rng();
    let case = Case::new(&mut rng);
    let kept = written(&case, "web", &mut rng);
    let saved = fs::read(case.shed.delta("web")).unwrap();
    let start = std::time::Instant::now();
    case.shed.ok(&["shrink", "web", "--recompress"]);
    let whole = start.elapsed();
    let (before, after) = (blake3::hash(&saved), file_digest(&case.shed.delta("web")));
    let mut halfway = 0;
    for round in 0..12 {
        fs::write(case.shed.delta("web"), &saved).unwrap();
        let moment = whole.mul_f64(rng.below(1000) as f64 / 1000.0);
        case.shed.cut_short(&["shrink", "web", "--recompress"], moment, round % 2 == 0);
        let now = file_digest(&case.shed.delta("web"));
        halfway += u32::from(now != before && now != after);
        assert_eq!(case.check_killed("web"), kept);
    }
    println!("{halfway} of 12 were cut short in the middle");
    assert!(halfway > 0);
    case.shed.ok(&["shrink", "web", "--recompress"]);
    assert!(case.host_bytes("web").0 < 20 * MIB, "{:?}", case.host_bytes("web"));
    assert_eq!(case.check("web"), kept);
}
