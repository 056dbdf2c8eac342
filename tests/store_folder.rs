//! What is a store, and what never becomes one.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/store.rs"]
mod common;

use common::*;
use cowshed::Kind;
use cowshed::store::{Store, Target};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn an_absent_or_empty_folder_becomes_a_private_store() {
    let dir = Scrap::new();
    let path = dir.path().join("deep/er/store");
    let error = Store::open(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    Store::open_or_create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(Store::open(&path).unwrap().bases().unwrap().is_empty());
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(Store::open(&empty).unwrap_err().kind(), Kind::Invalid);
    Store::open_or_create(&empty).unwrap();
    Store::open(&empty).unwrap();
}

#[test]
fn a_folder_with_anything_in_it_is_never_adopted() {
    let dir = Scrap::new();
    for (number, make) in ["notes.txt", ".hidden", "bases/x", "tmp/x", "clones/x/y"].iter().enumerate() {
        let path = dir.path().join(format!("folder{number}"));
        let file = path.join(make);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "mine").unwrap();
        let error = Store::open_or_create(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{make}: {error}");
        assert!(error.to_string().contains("not a store"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        assert!(!path.join("cowshed.json").exists());
    }
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert_eq!(Store::open_or_create(&file).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn a_making_that_was_cut_short_is_gone_on_with() {
    let dir = Scrap::new();
    let path = dir.path().join("store");
    fs::create_dir_all(path.join("bases")).unwrap();
    fs::create_dir_all(path.join("tmp")).unwrap();
    fs::write(path.join(".cowshed.json.77"), "{").unwrap();
    Store::open_or_create(&path).unwrap();
    Store::open(&path).unwrap();
}

#[test]
fn a_later_or_broken_store_file_is_refused() {
    let temp = TempStore::new();
    let file = temp.root().join("cowshed.json");
    for (text, kind) in [
        ("{\"format\": 2}", Kind::Unsupported),
        ("{\"format\": 1, \"more\": 1}", Kind::Invalid),
        ("", Kind::Invalid),
        ("{\"format\": \"1\"}", Kind::Invalid),
    ] {
        fs::write(&file, text).unwrap();
        assert_eq!(Store::open(temp.root()).unwrap_err().kind(), kind, "{text}");
    }
    fs::write(&file, vec![b' '; 70000]).unwrap();
    assert!(Store::open(temp.root()).is_err());
}

#[test]
fn a_planted_link_leads_nowhere() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a", "b"]);
    let outside = temp.dir.path().join("outside");
    fs::rename(temp.clone_folder("a"), &outside).unwrap();
    symlink(&outside, temp.clone_folder("a")).unwrap();
    assert!(temp.store.clones().is_err());
    let disk = temp.clone_folder("b").join("disk.qcow2");
    fs::rename(&disk, temp.dir.path().join("disk")).unwrap();
    symlink(temp.dir.path().join("disk"), &disk).unwrap();
    let open = temp.store.open_target(&Target::Clone(name("b")), cowshed::store::Access::Inspect);
    assert!(open.is_err(), "a link was followed");
    fs::remove_file(&disk).unwrap();
    must("mkfifo", &[disk.to_str().unwrap()]);
    let error = temp.store.open_clone(&name("b"), cowshed::store::Access::Write).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    fs::remove_file(temp.clone_folder("a")).unwrap();
    temp.store.remove_clone(&name("b")).unwrap();
}

#[test]
fn a_hostile_manifest_ends_in_a_sentence_and_the_clone_can_be_removed() {
    let (temp, _) = TempStore::with_base(1 << 20);
    temp.clones(&["a"]);
    let file = temp.clone_folder("a").join("clone.json");
    let good = fs::read_to_string(&file).unwrap();
    let long = format!("{good}{}", " ".repeat(70000));
    for (text, kind) in [
        (good.replace("\"manifest\": 1", "\"manifest\": 9"), Kind::Unsupported),
        (good.replace("\"base\"", "\"bass\""), Kind::Corrupt),
        (good.replace("\"name\": \"base\"", "\"name\": \"../../etc\""), Kind::Corrupt),
        ("[".repeat(60000), Kind::Corrupt),
        (long, Kind::Corrupt),
        (String::new(), Kind::Corrupt),
    ] {
        fs::write(&file, &text).unwrap();
        let error = temp.store.clone_named(&name("a")).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("clone.json"), "{error}");
    }
    temp.store.remove_clone(&name("a")).unwrap();
    assert!(temp.store.clones().unwrap().is_empty());
}
