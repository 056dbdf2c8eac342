//! A host filesystem that is full: import, clone, and writing through the view.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::{must, qemu_check};
use common::{Shed, noise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// A small filesystem of its own below a store's folder.
struct Small(std::path::PathBuf);

impl Small {
    fn at(shed: &Shed, size: &str) -> Self {
        fs::create_dir(shed.root()).unwrap();
        let root = shed.root();
        must("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", root.to_str().unwrap()]);
        Self(root)
    }

    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) -> std::path::PathBuf {
        let filler = self.0.parent().unwrap().join("store/filler");
        let file = File::create(&filler).unwrap();
        let free = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let free = free.blocks_available() * free.fragment_size() - left;
        let wanted = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&file, wanted, 0, i64::try_from(free).unwrap()).unwrap();
        filler
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn an_import_or_clone_without_room_leaves_nothing() {
    let shed = Shed::new();
    let small = Small::at(&shed, "12m");
    let image = shed.image("deb.raw");
    let said = shed.fails(1, &["import", image.to_str().unwrap(), "--name", "deb"]);
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(shed.json(&["list"])["bases"].as_array().unwrap().len(), 0);
    assert_eq!(fs::read_dir(shed.root().join("tmp")).unwrap().count(), 0);

    must("mount", &["-o", "remount,size=48m", small.0.to_str().unwrap()]);
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb"]);
    let filler = small.fill(64 << 10);
    let said = shed.fails(1, &["clone", "deb", "web", "--count", "100"]);
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(shed.json(&["list"])["clones"].as_array().unwrap().len(), 0, "all clones or none");
    fs::remove_file(filler).unwrap();
    shed.ok(&["clone", "deb", "web", "--count", "100"]);
    shed.ok(&["check", "--all"]);
}

#[test]
fn a_writer_without_room_gets_the_error_and_goes_on_when_there_is_some() {
    let shed = Shed::new();
    let small = Small::at(&shed, "48m");
    let image = shed.image("deb.raw");
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb"]);
    shed.ok(&["clone", "deb", "web"]);
    let view = shed.mount();
    let filler = small.fill(4 << 20);
    let file = File::options().read(true).write(true).open(view.clone_file("web")).unwrap();
    let mut written = 0_u64;
    let error = loop {
        match file.write_all_at(&noise(65536, written), written << 16) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 400, "the filesystem is never full");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    fs::remove_file(filler).unwrap();
    for piece in written..written + 40 {
        file.write_all_at(&noise(65536, piece), piece << 16).unwrap();
    }
    file.sync_all().unwrap();
    let mut seen = vec![0; 65536];
    for piece in 0..written + 40 {
        file.read_exact_at(&mut seen, piece << 16).unwrap();
        assert!(seen == noise(65536, piece), "piece {piece}");
    }
    drop(file);
    view.unmount();
    qemu_check(&shed.delta("web"));
    shed.ok(&["check", "web"]);
}
