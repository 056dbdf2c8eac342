//! As `image`, compared with QEMU: no byte is read that `qemu-img convert` reads otherwise, and where its check finds
//! errors ours does. Where QEMU hangs or gives up there is nothing to compare with.

use super::builder::build;
use super::image::{check_of, disk, read_all};
use super::input::Input;
use cowshed::storage::Memory;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

fn qemu_img(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "20", "qemu-img"]).args(args).current_dir(folder).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.code() != Some(127), "qemu-img is missing");
    output
}

pub fn qemu(data: &[u8]) {
    let built = build(&mut Input(data));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("t.qcow2"), &built.bytes).unwrap();
    if let Some(base) = &built.base {
        std::fs::write(folder.join("b.raw"), base).unwrap();
    }
    let ours = check_of(&built.bytes);
    let opened = disk(Arc::new(Memory::from_bytes(&built.bytes)), built.base.as_ref(), false);
    let theirs = qemu_img(folder, &["check", "-f", "qcow2", "--output=json", "t.qcow2"]);
    let said =
        format!("{}{}", String::from_utf8_lossy(&theirs.stdout), String::from_utf8_lossy(&theirs.stderr));
    let code = theirs.status.code();
    if !built.damaged {
        assert_eq!(code, Some(0), "the builder's image: {said}");
    }
    // The base's name and format are not the image's own affair: who opens the chain refuses them.
    let refused = code == Some(1) && !said.contains("backing file") && !said.contains("check-errors\": 0");
    let errors = refused || said.contains("\"corruptions\":");
    let sound = opened.is_ok() && ours.as_ref().is_ok_and(|report| report.is_consistent());
    assert!(!(errors && sound), "qemu-img check finds errors, we find none: {said}");
    let Ok(opened) = opened else { return };
    if opened.size() > 64 << 20
        || !qemu_img(folder, &["convert", "-f", "qcow2", "-O", "raw", "t.qcow2", "out"]).status.success()
    {
        return;
    }
    let theirs = std::fs::read(folder.join("out")).unwrap();
    let mut at = 0;
    for read in read_all(&opened).into_iter().take(64) {
        if let Some(bytes) = &read {
            assert!(
                theirs.get(at..at + bytes.len()) == Some(bytes),
                "other bytes than qemu-img convert at {at:#x}"
            );
        }
        at += 4096;
    }
}
