#![allow(clippy::unwrap_used)]
use super::*;
use crate::ops::Silent;
use crate::ops::gc::gc;
use crate::ops::import::{Format, ImportRequest, import};
use crate::store::{BaseRef, CloneOptions, manifest};
use crate::units::GuestOffset;
use std::cell::RefCell;
use std::fs;
use std::path::Path;

type Then = Box<dyn FnOnce()>;

thread_local! {
    /// What happens after this thread has read the manifest of a base version, and before it opens the file.
    static THEN: RefCell<Option<(usize, Then)>> = const { RefCell::new(None) };
}

/// Called by the gate after each manifest of a base version.
pub(super) fn after_a_manifest() {
    let then = THEN.with_borrow_mut(|then| match then {
        Some((0, _)) => then.take().map(|(_, then)| then),
        Some((later, _)) => {
            *later -= 1;
            None
        }
        None => None,
    });
    // It reads manifests, too.
    if let Some(then) = then {
        then();
    }
}

/// Does `then` after `manifests` more have been read.
fn after(manifests: usize, then: impl FnOnce() + 'static) {
    THEN.with_borrow_mut(|waits| *waits = Some((manifests, Box::new(then))));
}

/// Whether it was done.
fn is_done() -> bool {
    THEN.with_borrow(Option::is_none)
}

/// A base of three versions with one name, each a delta over the one before, and what they hold.
pub(crate) fn three_versions(dir: &Path) -> (Store, Vec<Vec<u8>>) {
    let store = Store::open_or_create(&dir.join("store")).unwrap();
    let mut bytes = vec![7; 1 << 20];
    let mut versions = Vec::new();
    for version in 1..=3_u8 {
        bytes[usize::from(version) * 100_000..][..9000].fill(version);
        let source = dir.join("source");
        fs::write(&source, &bytes).unwrap();
        let request = ImportRequest {
            source,
            format: Some(Format::Raw),
            name: "os".parse().unwrap(),
            update: version > 1,
            follow_backing: false,
        };
        import(&store, &request, &Silent).unwrap();
        versions.push(bytes.clone());
    }
    (store, versions)
}

fn version(number: u32) -> BaseRef {
    BaseRef::exact("os".parse().unwrap(), number)
}

fn content(store: &Store, number: u32) -> Result<Vec<u8>> {
    let open = store.open_base(&version(number))?;
    let mut bytes = vec![0; 1 << 20];
    open.disk.read(&mut bytes, GuestOffset(0))?;
    Ok(bytes)
}

/// Makes the sealed files removable again.
pub(crate) fn unseal(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            unseal(&path);
        } else {
            let _ = crate::storage::set_immutable(&fs::File::open(&path).unwrap(), false);
        }
    }
}

/// Opens version 3 while another command rewrites it after the manifests of so many versions were read.
fn opens_during_gc(is_first_needed: bool, manifests: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (store, versions) = three_versions(dir.path());
    let name: Name = "os".parse().unwrap();
    if is_first_needed {
        store.create_clones(&version(1), &["pinned".parse().unwrap()], &CloneOptions::default()).unwrap();
    }
    let (other, base) = (store.clone(), name.clone());
    after(manifests, move || gc(&other, Some(&base), true, &Silent, &mut |_| ()).unwrap());
    let read = content(&store, 3);
    assert!(is_done(), "nothing came between");
    assert!(read.unwrap() == versions[2]);
    assert_eq!(store.versions(&name).unwrap(), if is_first_needed { vec![1, 3] } else { vec![3] });
    assert!(content(&store, 3).unwrap() == versions[2]);
    unseal(dir.path());
}

#[test]
fn a_version_that_is_exchanged_between_its_manifest_and_its_file_is_opened_anew() {
    for is_first_needed in [false, true] {
        opens_during_gc(is_first_needed, 0);
    }
}

#[test]
fn a_chain_that_is_opened_anew_holds_no_lock_of_the_first_try() {
    let dir = tempfile::tempdir().unwrap();
    let (store, versions) = three_versions(dir.path());
    // Version 3 is open and locked by then; another hand rewrites the one below as gc does.
    let manifest = store.base_manifest(&"os".parse().unwrap(), 2).unwrap().unwrap();
    let folder = dir.path().join("store/bases/os/2");
    after(1, move || {
        // The same bytes in a new file with a manifest that fits it, in the place of the old ones.
        let (disk, aside) = (folder.join("disk.qcow2"), folder.join("disk.new"));
        fs::copy(&disk, &aside).unwrap();
        let _ = crate::storage::set_immutable(&fs::File::open(&disk).unwrap(), false);
        fs::rename(&aside, &disk).unwrap();
        let fingerprint = Fingerprint::of(&fs::File::open(&disk).unwrap()).unwrap();
        let bytes = manifest::bytes(&BaseManifest { fingerprint, ..manifest }).unwrap();
        fs::write(folder.join("base.json"), bytes).unwrap();
    });
    let open = store.open_base(&version(3)).unwrap();
    assert!(is_done());
    assert_eq!(open.files().len(), 3, "each layer once");
    let mut bytes = vec![0; 1 << 20];
    open.disk.read(&mut bytes, GuestOffset(0)).unwrap();
    assert!(bytes == versions[2]);
    drop(open);
    let _alone = store.remove_base(&version(3)).unwrap();
    unseal(dir.path());
}

#[test]
fn a_version_that_is_damaged_and_not_exchanged_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = three_versions(dir.path());
    let disk = dir.path().join("store/bases/os/3/disk.qcow2");
    after(0, move || {
        let _ = crate::storage::set_immutable(&fs::File::open(&disk).unwrap(), false);
        fs::File::open(&disk).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    });
    let error = content(&store, 3).unwrap_err();
    assert!(is_done());
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    unseal(dir.path());
}
