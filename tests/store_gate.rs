//! A base that is not what it was is refused with its name, and no image leads out of the store.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::ops::Silent;
use cowshed::ops::verify::{DamagedRange, reseal, verify};
use cowshed::storage::Fingerprint;
use cowshed::store::{Access, CloneOptions, Target};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

fn refused(temp: &TempStore, how: &str) {
    for access in [Access::Inspect, Access::Read, Access::Write] {
        let error = temp.store.open_clone(&name("a"), access).unwrap_err();
        assert_eq!(error.kind(), Kind::Changed, "{how}: {error}");
        let said = error.to_string();
        assert!(said.contains("base@1") && said.contains("cowshed verify base@1"), "{how}: {said}");
        assert!(said.contains("clone a"), "{how}: {said}");
    }
    let error =
        temp.store.create_clones(&base_ref("base"), &[name("b")], &CloneOptions::default()).unwrap_err();
    assert!(matches!(error.kind(), Kind::Changed | Kind::NotFound), "{how}: {error}");
    assert!(temp.store.open_base(&base_ref("base")).is_err(), "{how}");
    assert!(temp.store.scratch(&Target::Clone(name("a"))).is_err(), "{how}");
}

fn prepared() -> TempStore {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    temp.store.open_clone(&name("a"), Access::Write).unwrap().close().unwrap();
    temp
}

#[test]
fn one_changed_byte_is_refused_even_when_the_time_is_set_back() {
    let temp = prepared();
    let time = fs::metadata(temp.base_disk()).unwrap().modified().unwrap();
    temp.meddle(|file| file.write_all_at(b"x", 4096).unwrap());
    refused(&temp, "written to");
    temp.meddle(|file| file.set_modified(time).unwrap());
    refused(&temp, "written to, time set back");
    let report = verify(&temp.store, &base_ref("base"), &Silent).unwrap();
    assert!(!report.is_ok() && !report.digest_ok && !report.fingerprint_ok && report.sums_ok);
    assert_eq!(report.damaged, [DamagedRange { start: 0, length: 65536 }]);
    let error = reseal(&temp.store, &base_ref("base"), &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    refused(&temp, "after a refused reseal");
}

#[test]
fn verify_names_each_damaged_range_once() {
    let temp = prepared();
    assert!(verify(&temp.store, &base_ref("base"), &Silent).unwrap().is_ok());
    temp.meddle(|file| {
        for block in [2_u64, 3, 9, 15] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, block * 65536 + 77).unwrap();
            file.write_all_at(&[!byte[0]], block * 65536 + 77).unwrap();
        }
    });
    let report = verify(&temp.store, &base_ref("base"), &Silent).unwrap();
    let range = |start: u64, blocks: u64| DamagedRange { start: start * 65536, length: blocks * 65536 };
    assert_eq!(report.damaged, [range(2, 2), range(9, 1), range(15, 1)]);
    // A damaged list of sums is told, and not believed.
    fs::write(temp.root().join("bases/base/1/blocks.crc"), [0; 64]).unwrap();
    let report = verify(&temp.store, &base_ref("base"), &Silent).unwrap();
    assert!(!report.sums_ok && !report.digest_ok && report.damaged.is_empty());
}

#[test]
fn a_touched_base_is_refused_until_it_is_resealed() {
    let temp = prepared();
    temp.meddle(|file| file.set_modified(SystemTime::now()).unwrap());
    refused(&temp, "touched");
    let report = verify(&temp.store, &base_ref("base"), &Silent).unwrap();
    assert!(report.digest_ok && report.sums_ok && !report.fingerprint_ok && report.damaged.is_empty());
    reseal(&temp.store, &base_ref("base"), &Silent).unwrap();
    assert_eq!(temp.clone_content("a"), sample(1 << 20));
    assert!(verify(&temp.store, &base_ref("base"), &Silent).unwrap().is_ok());
    assert!(fs::metadata(temp.base_disk()).unwrap().permissions().readonly());
}

#[test]
fn a_replaced_base_is_refused_though_its_bytes_and_times_are_the_same() {
    let temp = prepared();
    let disk = temp.base_disk();
    unseal(&disk);
    let copy = disk.with_extension("copy");
    must("cp", &["--preserve=all", disk.to_str().unwrap(), copy.to_str().unwrap()]);
    fs::rename(&copy, &disk).unwrap();
    refused(&temp, "replaced");
    reseal(&temp.store, &base_ref("base"), &Silent).unwrap();
    assert_eq!(temp.clone_content("a"), sample(1 << 20));
}

#[test]
fn a_truncated_or_missing_base_is_refused() {
    let temp = prepared();
    temp.meddle(|file| file.set_len((1 << 20) - 512).unwrap());
    refused(&temp, "truncated");
    let report = verify(&temp.store, &base_ref("base"), &Silent).unwrap();
    assert!(!report.digest_ok);
    assert!(reseal(&temp.store, &base_ref("base"), &Silent).is_err());
    temp.meddle(|file| file.set_len(1 << 20).unwrap());
    assert!(!verify(&temp.store, &base_ref("base"), &Silent).unwrap().digest_ok);
    fs::rename(temp.base_disk(), temp.dir.path().join("away")).unwrap();
    refused(&temp, "disk missing");
    fs::rename(temp.root().join("bases/base/1"), temp.dir.path().join("away1")).unwrap();
    refused(&temp, "version missing");
    fs::remove_dir(temp.root().join("bases/base")).unwrap();
    refused(&temp, "base missing");
    let error = temp.store.open_clone(&name("a"), Access::Read).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    // The clone can still be listed, asked for its cost, and removed.
    assert_eq!(temp.store.clones().unwrap().len(), 1);
    temp.store.usage(&Target::Clone(name("a"))).unwrap();
    temp.store.remove_clone(&name("a")).unwrap();
}

#[test]
fn another_base_under_the_same_name_is_refused() {
    let temp = prepared();
    temp.add_base("other", &sample(2 << 20));
    let bases = temp.root().join("bases");
    fs::rename(bases.join("base"), temp.dir.path().join("away")).unwrap();
    fs::rename(bases.join("other"), bases.join("base")).unwrap();
    let error = temp.store.open_clone(&name("a"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    assert!(error.to_string().contains("base@1") && error.to_string().contains("digest"), "{error}");
}

#[test]
fn no_backing_name_leads_out_of_the_clones_own_chain() {
    let temp = prepared();
    temp.add_base("other", &sample(1 << 20));
    let secret = temp.dir.path().join("secret.raw");
    fs::write(&secret, sample(1 << 20)).unwrap();
    let disk = temp.clone_folder("a").join("disk.qcow2");
    let own = "../../bases/base/1/disk.raw";
    let json = format!("json:{{\"driver\":\"raw\",\"file.filename\":\"{}\"}}", secret.display());
    let rebase = |backing: &str, format: &str| {
        let disk = disk.to_str().unwrap();
        must("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", backing, "-F", format, disk]);
    };
    for (backing, format) in [
        (secret.to_str().unwrap(), "raw"),
        ("../../../secret.raw", "raw"),
        (&json, "raw"),
        ("nbd:localhost:10809", "raw"),
        ("../../bases/other/1/disk.raw", "raw"),
        ("../../bases/base/1/../1/disk.raw", "raw"),
        (own, "qcow2"),
        ("checkpoint-1.qcow2", "raw"),
        ("disk.qcow2", "qcow2"),
    ] {
        rebase(backing, format);
        let error = temp.store.open_clone(&name("a"), Access::Read).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{backing}: {error}");
        let said = error.to_string();
        assert!(said.contains("clone a") && said.contains("not opened"), "{said}");
    }
    // A checkpoint that is not there.
    rebase("checkpoint-7.qcow2", "qcow2");
    assert_eq!(temp.store.open_clone(&name("a"), Access::Read).unwrap_err().kind(), Kind::NotFound);
    rebase(own, "raw");
    assert_eq!(temp.clone_content("a"), sample(1 << 20));
    must("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", "", disk.to_str().unwrap()]);
    assert_eq!(temp.store.open_clone(&name("a"), Access::Read).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn an_image_without_our_identity_is_refused() {
    let temp = prepared();
    let folder = temp.clone_folder("a");
    let disk = folder.join("disk.qcow2");
    fs::remove_file(&disk).unwrap();
    let base = "../../bases/base/1/disk.raw";
    must("qemu-img", &["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk.to_str().unwrap()]);
    let error = temp.store.open_clone(&name("a"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("base@1"), "{error}");
}

#[test]
fn a_clones_header_that_names_another_base_is_refused() {
    let temp = prepared();
    temp.add_base("basf", &sample(1 << 20));
    let names = [name("b")];
    temp.store.create_clones(&base_ref("basf"), &names, &CloneOptions::default()).unwrap();
    fs::rename(temp.clone_folder("b").join("disk.qcow2"), temp.clone_folder("a").join("disk.qcow2")).unwrap();
    let error = temp.store.open_clone(&name("a"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("basf@1") && error.to_string().contains("base@1"), "{error}");
}

#[test]
fn a_base_is_sealed() {
    let temp = prepared();
    let path = temp.base_disk();
    assert!(fs::metadata(&path).unwrap().permissions().readonly());
    // The attribute holds even root off, where the filesystem has it.
    let probe = temp.dir.path().join("probe");
    let can = cowshed::storage::set_immutable(&File::create(&probe).unwrap(), true).is_ok();
    assert_eq!(File::options().write(true).open(&path).is_err(), can);
    assert_eq!(
        temp.store.open_target(&Target::Base(base_ref("base")), Access::Write).unwrap_err().kind(),
        Kind::ReadOnly
    );
}

/// A second version by hand: a qcow2 delta over the first one.
fn add_version(temp: &TempStore, backing: &str) {
    let versions = temp.root().join("bases/base");
    let folder = versions.join("2");
    fs::create_dir(&folder).unwrap();
    let disk = folder.join("disk.qcow2");
    let path = disk.to_str().unwrap();
    must("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "../1/disk.raw", "-F", "raw", path]);
    must("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 64k", path]);
    must("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", path]);
    let json = fs::read_to_string(versions.join("1/base.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["format"] = "qcow2".into();
    json["parent"] = 1.into();
    json["digest"] = "ab".repeat(32).into();
    json["fingerprint"] =
        serde_json::to_value(Fingerprint::of(&File::open(&disk).unwrap()).unwrap()).unwrap();
    fs::write(folder.join("base.json"), json.to_string()).unwrap();
}

#[test]
fn a_later_version_is_a_delta_over_the_one_before() {
    let temp = prepared();
    add_version(&temp, "../1/disk.raw");
    let store = &temp.store;
    assert_eq!(store.base(&base_ref("base")).unwrap().version, 2);
    store.create_clones(&base_ref("base"), &[name("b")], &CloneOptions::default()).unwrap();
    let mut expected = sample(1 << 20);
    assert!(temp.clone_content("a") == expected);
    expected[..65536].fill(7);
    assert!(temp.clone_content("b") == expected);
    qemu_check(&temp.clone_folder("b").join("disk.qcow2"));
    assert_eq!(store.open_clone(&name("b"), Access::Read).unwrap().files().len(), 3);
    store.remove_clone(&name("a")).unwrap();
    let error = store.remove_base(&base_ref("base@1")).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("base base@2"), "{error}");
    let shared = store.usage(&Target::Clone(name("b"))).unwrap().shared_bytes;
    let below = store.usage(&Target::Base(base_ref("base@2"))).unwrap();
    assert!(below.shared_bytes > 0 && shared > below.shared_bytes && below.freed_if_deleted == 0);
    // A change of any version below is seen.
    temp.meddle(|file| file.set_modified(SystemTime::now()).unwrap());
    let error = store.open_clone(&name("b"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
    assert!(error.to_string().contains("base@1"), "{error}");
}

#[test]
fn a_version_that_names_something_else_as_its_parent_is_refused() {
    let temp = prepared();
    add_version(&temp, "../../../secret.raw");
    let error = temp.store.open_base(&base_ref("base@2")).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("not opened"), "{error}");
    let file = temp.root().join("bases/base/2/base.json");
    let json = fs::read_to_string(&file).unwrap().replace("\"parent\":1", "\"parent\":2");
    fs::write(&file, json).unwrap();
    let error = temp.store.open_base(&base_ref("base@2")).unwrap_err();
    assert!(error.to_string().contains("parent"), "{error}");
}

#[test]
fn a_copied_store_opens_again_after_its_bases_are_sealed_anew() {
    let temp = prepared();
    temp.store.checkpoint(&name("a"), None).unwrap();
    temp.write("a", &[9; 5000], 70_000);
    let expected = temp.clone_content("a");
    let copy = temp.dir.path().join("copy");
    must("cp", &["-a", temp.root().to_str().unwrap(), copy.to_str().unwrap()]);
    let store = cowshed::store::Store::open(&copy).unwrap();
    assert_eq!(store.open_clone(&name("a"), Access::Read).unwrap_err().kind(), Kind::Changed);
    reseal(&store, &base_ref("base"), &Silent).unwrap();
    let open = store.open_clone(&name("a"), Access::Read).unwrap();
    let mut bytes = vec![0; 1 << 20];
    open.disk.read(&mut bytes, cowshed::units::GuestOffset(0)).unwrap();
    assert!(bytes == expected);
}

#[test]
fn a_checkpoint_that_was_touched_can_be_accepted_and_a_damaged_one_cannot() {
    let temp = prepared();
    temp.store.checkpoint(&name("a"), None).unwrap();
    let expected = temp.clone_content("a");
    let path = temp.clone_folder("a").join("checkpoint-1.qcow2");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    let error = temp.store.open_clone(&name("a"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
    assert!(error.to_string().contains("cowshed check a --reseal"), "{error}");
    let open = temp.store.open_base(&base_ref("base")).unwrap();
    assert_eq!(temp.store.reseal_checkpoints(&name("a")).unwrap(), [1]);
    drop(open);
    assert!(temp.clone_content("a") == expected);
    assert!(temp.store.reseal_checkpoints(&name("a")).unwrap().is_empty());
    let reader = temp.store.open_clone(&name("a"), Access::Read).unwrap();
    assert_eq!(temp.store.reseal_checkpoints(&name("a")).unwrap_err().kind(), Kind::Busy);
    drop(reader);
    // The L1 table's place is nonsense.
    file.write_all_at(&[0x7f; 8], 40).unwrap();
    let error = temp.store.reseal_checkpoints(&name("a")).unwrap_err();
    assert!(error.to_string().contains("checkpoint 1 of clone a"), "{error}");
    assert!(temp.store.open_clone(&name("a"), Access::Read).is_err());
}

#[test]
fn a_base_that_is_immutable_but_not_read_only_can_be_sealed_anew() {
    let temp = prepared();
    temp.meddle(|file| file.set_modified(SystemTime::now()).unwrap());
    // Where the filesystem has no such attribute, this is an ordinary file.
    let _ = cowshed::storage::set_immutable(&File::open(temp.base_disk()).unwrap(), true);
    reseal(&temp.store, &base_ref("base"), &Silent).unwrap();
    assert_eq!(temp.clone_content("a"), sample(1 << 20));
}
