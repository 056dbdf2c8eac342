//! What this engine writes, two other engines read as it does: `imago` over a raw base, `qcow2-rs` alone (it takes no
//! raw base). Plain L2, which is what both of them know.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod images;
    pub mod qemu;
    pub mod rng;
}

use common::rng::Rng;
use cowshed::qcow2::{BackingName, CreateOptions, create};
use cowshed::units::GuestOffset;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SIZE: usize = 8 << 20;
const SECTOR: usize = 512;

/// A plain image with random writes, zeroes and discards, over `base` if there is one, and what it must read as.
fn written(base: Option<Vec<u8>>) -> (TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clone.qcow2");
    let mut options =
        CreateOptions { cluster_bits: 16, extended_l2: false, ..CreateOptions::new(SIZE as u64) };
    if let Some(base) = &base {
        std::fs::write(folder.path().join("base.raw"), base).unwrap();
        options.backing = Some(BackingName { file: "base.raw".into(), format: Some("raw".into()) });
    }
    let storage = common::images::new_file(&path);
    create(&*storage, &options).unwrap();
    storage.sync().unwrap();
    let mut model = base.unwrap_or_else(|| vec![0; SIZE]);
    let disk = common::images::open(&path, true);
    let mut rng = Rng::new(7);
    for round in 0..200_u64 {
        let at = rng.below((SIZE / SECTOR) as u64) as usize * SECTOR;
        let len = (SECTOR * (1 + rng.below(256) as usize)).min(SIZE - at);
        let bytes = if round % 4 == 3 { vec![0; len] } else { vec![round as u8; len] };
        if round % 8 == 7 {
            disk.discard(GuestOffset(at as u64), len as u64).unwrap();
        } else {
            disk.write(&bytes, GuestOffset(at as u64)).unwrap();
        }
        model[at..at + len].copy_from_slice(&bytes);
    }
    disk.close().unwrap();
    common::qemu::assert_clean(&path, "after the writes");
    (folder, path, model)
}

fn read_by_imago(path: &Path) -> Vec<u8> {
    use imago::file::File;
    use imago::qcow2::Qcow2;
    use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
    let image =
        Qcow2::<File>::builder_path(path).write(false).open(PermissiveImplicitOpenGate::default()).unwrap();
    let mut bytes = vec![0xee; SIZE];
    FormatAccess::new(image).read(&mut bytes[..], 0).unwrap();
    bytes
}

fn read_by_qcow2_rs(path: &Path) -> Vec<u8> {
    use qcow2_rs::dev::Qcow2DevParams;
    use qcow2_rs::helpers::Qcow2IoBuf;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let params = Qcow2DevParams::new(9, None, None, true, false);
        let device = qcow2_rs::utils::qcow2_setup_dev_sync(path, &params).unwrap();
        device.qcow2_prep_io().await.unwrap();
        let mut bytes = Qcow2IoBuf::<u8>::new(SIZE);
        assert_eq!(device.read_at(&mut bytes, 0).await.unwrap(), SIZE);
        bytes.to_vec()
    })
}

#[test]
fn imago_reads_a_clone_over_a_raw_base_as_we_do() {
    let base = Rng::new(3).bytes(SIZE);
    let (folder, path, model) = written(Some(base.clone()));
    assert!(read_by_imago(&path) == model, "imago reads other bytes");
    assert!(std::fs::read(folder.path().join("base.raw")).unwrap() == base, "the base changed");
}

#[test]
fn qcow2_rs_reads_an_image_without_a_base_as_we_do() {
    let (_folder, path, model) = written(None);
    assert!(read_by_qcow2_rs(&path) == model, "qcow2-rs reads other bytes");
}
