//! `rm --checkpoint` of a checkpoint that something stands on: what is promised is given back, and a kill leaves all as it was
//! before or as it is after.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]
#![allow(clippy::cast_possible_wrap)]

mod common {
    pub mod cli;
    pub mod rng;
}

use common::cli::store::{file_digest, must, name, qemu_check};
use common::cli::{Shed, noise};
use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::store::{Access, Store};
use cowshed::units::GuestOffset;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn write(shed: &Shed, clone: &str, at: u64, data: &[u8]) {
    let open = Store::open(&shed.root()).unwrap().open_clone(&name(clone), Access::Write).unwrap();
    open.disk.write(data, GuestOffset(at)).unwrap();
    open.close().unwrap();
}

fn content(shed: &Shed, clone: &str) -> blake3::Hash {
    let out = shed.path("content.raw");
    shed.ok(&["export", clone, out.to_str().unwrap(), "--format", "raw", "--force"]);
    file_digest(&out)
}

/// What the host says that a store takes up.
fn host(shed: &Shed) -> u64 {
    must("sync", &[]);
    let said = must("du", &["-s", "--block-size=1", shed.root().to_str().unwrap()]);
    said.split_whitespace().next().unwrap().parse().unwrap()
}

/// A raw copy of what QEMU reads from a file of the store.
fn raw(shed: &Shed, file: &Path, to: &str) -> String {
    let out = shed.path(to).into_os_string().into_string().unwrap();
    must("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", file.to_str().unwrap(), &out]);
    out
}

fn same(shed: &Shed, raw: &str, file: &Path) {
    must("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", raw, file.to_str().unwrap()]);
    qemu_check(file);
    assert_eq!(fs::read_dir(shed.root().join("tmp")).unwrap().count(), 0);
}

/// A clone with 8 MiB in checkpoint 1, of which 6 are written anew in checkpoint 2, and 2 MiB more on top.
fn layered() -> Shed {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    write(&shed, "web", 4 * MIB, &noise(8 << 20, 1));
    shed.ok(&["checkpoint", "web", "--note", "first"]);
    write(&shed, "web", 4 * MIB, &noise(6 << 20, 2));
    shed.ok(&["checkpoint", "web"]);
    write(&shed, "web", 16 * MIB, &noise(2 << 20, 3));
    shed
}

#[test]
fn what_shrink_and_a_plan_promise_is_given_back() {
    let shed = layered();
    let base = file_digest(&shed.base_disk());
    let second = shed.root().join("clones/web/checkpoint-2.qcow2");
    let (now, then) = (raw(&shed, &shed.delta("web"), "now"), raw(&shed, &second, "then"));

    let told = shed.ok(&["shrink", "web"]);
    assert!(
        told.contains("checkpoint 1 holds 8.0") && told.contains("cowshed rm web --checkpoint 1 gives back"),
        "{told}"
    );
    let report = shed.json(&["shrink", "web", "--plan"])[0]["shrink"]["checkpoints"].clone();
    let back = |at: usize| report[at]["gives_back_bytes"].as_u64().unwrap();
    assert!((11 * MIB / 2..6 * MIB + 65536).contains(&back(0)), "{report}");
    assert!(back(1) < 65536 && report[1]["needed"] == false, "{report}");

    let planned = shed.json(&["rm", "web", "--checkpoint", "1", "--plan"])[0].clone();
    let promised = planned["freed_bytes"].as_u64().unwrap();
    assert_eq!((promised, planned["into"].as_str()), (back(0), Some("checkpoint 2")));
    assert!((8 * MIB..8 * MIB + 256 * 1024).contains(&planned["needs_bytes"].as_u64().unwrap()), "{planned}");
    let text = shed.ok(&["rm", "web", "--checkpoint", "1", "--plan"]);
    assert!(
        text.contains("which frees at least 6.0 MiB; checkpoint 2 keeps what is still seen of it"),
        "{text}"
    );

    let before = host(&shed);
    assert!(shed.ok(&["rm", "web", "--checkpoint", "1"]).starts_with("removed checkpoint 1 of web, freed "));
    let given = before - host(&shed);
    assert!((promised..promised + 128 * 1024).contains(&given), "{given} of {promised}");
    same(&shed, &then, &second);
    same(&shed, &now, &shed.delta("web"));

    let before = host(&shed);
    let planned = shed.json(&["rm", "web", "--checkpoint", "2", "--plan"])[0].clone();
    let done = shed.json(&["rm", "web", "--checkpoint", "2"])[0].clone();
    assert_eq!((&done["into"], &planned["into"]), (&"its present state".into(), &"its present state".into()));
    let (promised, freed) = (planned["freed_bytes"].as_u64().unwrap(), done["freed_bytes"].as_u64().unwrap());
    assert!(before - host(&shed) >= promised && freed >= promised && freed < promised + 256 * 1024, "{done}");
    same(&shed, &now, &shed.delta("web"));
    assert_eq!(shed.json(&["checkpoints", "web"])["checkpoints"], serde_json::json!([]));
    assert_eq!(file_digest(&shed.base_disk()), base);
    assert!(shed.ok(&["shrink", "web"]).contains("nothing is needless"));

    let du = shed.json(&["du"]);
    let own: u64 =
        du["disks"].as_array().unwrap().iter().map(|disk| disk["own_bytes"].as_u64().unwrap()).sum();
    assert_eq!(own + du["other_bytes"].as_u64().unwrap(), host(&shed));
    assert!(shed.fails(1, &["rm", "web", "--checkpoint", "2"]).contains("has no checkpoint 2"));
}

#[test]
fn several_layers_on_a_checkpoint_are_named() {
    let shed = layered();
    shed.ok(&["restore", "web", "1"]);
    let before = content(&shed, "web");
    for arguments in [&["rm", "web", "--checkpoint", "1"][..], &["rm", "web", "--checkpoint", "1", "--plan"]]
    {
        let said = shed.fails(1, arguments);
        assert!(
            said.contains("checkpoint 2 and its present state stand on it; remove all of them but one first"),
            "{said}"
        );
    }
    assert!(
        shed.ok(&["shrink", "web", "--plan"])
            .contains("checkpoint 1 holds 8.0 MiB; several layers stand on it")
    );
    // 2 goes into the checkpoint that the restore kept; what is left of the fork goes as a whole.
    shed.ok(&["rm", "web", "--checkpoint", "2"]);
    shed.ok(&["rm", "web", "--checkpoint", "3"]);
    shed.ok(&["rm", "web", "--checkpoint", "1"]);
    assert_eq!(content(&shed, "web"), before);
    shed.ok(&["check", "web"]);
}

/// Keeps a clone's folder, and puts it back.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    must("cp", &["-a", "--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]);
}

#[test]
fn a_killed_or_interrupted_removal_leaves_all_as_before_or_as_after() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "web"]);
    write(&shed, "web", MIB, &noise(28 << 20, 1));
    shed.ok(&["checkpoint", "web"]);
    write(&shed, "web", 2 * MIB, &noise(14 << 20, 2));
    let now = content(&shed, "web");
    let (folder, kept) = (shed.root().join("clones/web"), shed.path("kept"));
    copy(&folder, &kept);
    let began = Instant::now();
    shed.ok(&["rm", "web", "--checkpoint", "1"]);
    let lasts = began.elapsed();
    let (mut before, mut after, mut stopped) = (0, 0, 0);
    for round in 0..16 {
        copy(&kept, &folder);
        let wait = lasts.mul_f64(rng.below(1000) as f64 / 1000.0);
        stopped += u32::from(shed.cut_short(&["rm", "web", "--checkpoint", "1"], wait, round % 4 == 3));
        assert_eq!(content(&shed, "web"), now, "round {round}");
        match shed.json(&["checkpoints", "web"])["checkpoints"].as_array().unwrap().len() {
            0 => after += 1,
            _ => {
                before += 1;
                assert!(shed.json(&["checkpoints", "web"])["current"] == 1);
            }
        }
        // The next command takes away what is left.
        shed.ok(&["checkpoint", "web"]);
        shed.ok(&["check", "web"]);
        assert_eq!(fs::read_dir(shed.root().join("tmp")).unwrap().count(), 0);
        assert_eq!(content(&shed, "web"), now, "round {round}");
    }
    println!("{before} as before, {after} as after, {stopped} stopped in the middle; {lasts:?} without");
    assert!(stopped > 0 && before > 0);
}

#[test]
fn who_looks_without_a_lock_meanwhile_sees_no_half() {
    let shed = layered();
    let now = content(&shed, "web");
    let look = |what: &str| {
        let mut command = shed.command(&[what, "web", "--json"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut looks = 0;
    for _ in 0..3 {
        let numbers = shed.json(&["checkpoints", "web"])["checkpoints"].clone();
        let number = numbers[0]["number"].to_string();
        let mut removal =
            shed.command(&["rm", "web", "--checkpoint", &number]).stdout(Stdio::null()).spawn().unwrap();
        while removal.try_wait().unwrap().is_none() {
            for output in
                ["info", "checkpoints", "map"].map(look).map(|child| child.wait_with_output().unwrap())
            {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.is_empty(), "{said}");
                looks += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(removal.wait().unwrap().success());
        assert_eq!(content(&shed, "web"), now);
        shed.ok(&["checkpoint", "web"]);
    }
    println!("{looks} looks");
    assert!(looks > 3);
}
