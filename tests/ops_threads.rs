//! How many threads work never changes a result: import, export, a new version, keep, verify, check and the digests they give.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;

use common::store::{file_digest, must};
use common::{Shed, noise};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of a disk that no thread count divides: some chunks of 1 MiB and a rest.
const SIZE: u64 = (37 << 20) + 4608;

/// Noise and zeros, stored and as holes, in runs that fit no block.
fn disk(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    for number in 0..60_u64 {
        let (at, len) = (number * 613_000, [700, 66_000, 300_000][usize::try_from(number % 3).unwrap()]);
        let bytes = if number % 7 == 5 { vec![0; len] } else { noise(len, number) };
        file.write_all_at(&bytes, at).unwrap();
    }
}

/// What a file holds, and the blocks it takes on the host.
fn file(path: &Path) -> (String, u64, u64) {
    let stat = fs::metadata(path).unwrap();
    (file_digest(path).to_string(), stat.len(), stat.blocks())
}

/// The same disk some work later: other bytes, zeros for bytes, bytes for zeros, in runs that fit no cluster.
fn later(from: &Path, path: &Path) {
    fs::copy(from, path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    for number in 0..40_u64 {
        let bytes = if number % 5 == 3 { vec![0; 200_000] } else { noise(90_000, 1000 + number) };
        file.write_all_at(&bytes, number * 811_000).unwrap();
    }
}

/// Everything that commands give with so many threads, but for times and inodes.
struct Results {
    files: Vec<(&'static str, (String, u64, u64))>,
    reports: Vec<Value>,
    said: Vec<String>,
}

fn timeless(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            ["created", "fingerprint", "own_bytes", "shared_bytes", "freed_if_deleted"].iter().for_each(
                |name| {
                    fields.remove(*name);
                },
            );
            fields.values_mut().for_each(|field| *field = timeless(field.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = timeless(item.take())),
        _ => {}
    }
    value
}

fn results([image, packed, later]: [&Path; 3], threads: &str) -> Results {
    let shed = Shed::new();
    let say = |arguments: &[&str]| {
        let output = shed.command(arguments).env("RAYON_NUM_THREADS", threads).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), said)
    };
    let ok = |arguments: &[&str]| {
        let (code, out, said) = say(arguments);
        // Folders have names of their own.
        let out = out.replace(&shed.dir.path().display().to_string(), "");
        assert!(code == Some(0) && said.is_empty(), "{threads} threads, {arguments:?}: {code:?} {said}");
        out
    };
    let json =
        |arguments: &[&str]| timeless(serde_json::from_str(&ok(&[arguments, &["--json"]].concat())).unwrap());
    let mut said = vec![
        ok(&["import", image.to_str().unwrap(), "--name", "deb", "--format", "raw"]),
        ok(&["import", packed.to_str().unwrap(), "--name", "packed"]),
        ok(&["clone", "deb", "web"]),
    ];
    let delta = shed.delta("web");
    must(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 7 100k 9M", "-c", "write -z 20M 3M", delta.to_str().unwrap()],
    );
    said.extend([
        ok(&["import", image.to_str().unwrap(), "--name", "os"]),
        ok(&["import", "--update", "os", later.to_str().unwrap()]),
        ok(&["clone", "os@1", "box"]),
    ]);
    let kept = shed.delta("box");
    must(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 9 300k 7M", "-c", "write -P 3 25M 70k", kept.to_str().unwrap()],
    );
    said.push(ok(&["rebase", "box", "--onto", "os@2", "--strategy", "keep"]));
    let out = |name: &str| shed.path(name);
    for (disk, format, name) in [
        ("deb", "raw", "b.raw"),
        ("deb", "qcow2", "b.qcow2"),
        ("web", "raw", "w.raw"),
        ("web", "qcow2", "w.qcow2"),
    ] {
        said.push(ok(&["export", disk, out(name).to_str().unwrap(), "--format", format]));
    }
    let bases = shed.root().join("bases");
    let files = vec![
        ("deb's disk", file(&shed.base_disk())),
        ("deb's sums", file(&bases.join("deb/1/blocks.crc"))),
        ("packed's disk", file(&bases.join("packed/1/disk.raw"))),
        ("packed's sums", file(&bases.join("packed/1/blocks.crc"))),
        ("os@2's delta", file(&bases.join("os/2/disk.qcow2"))),
        ("box, kept", file(&kept)),
        ("base, raw", file(&out("b.raw"))),
        ("base, qcow2", file(&out("b.qcow2"))),
        ("clone, raw", file(&out("w.raw"))),
        ("clone, qcow2", file(&out("w.qcow2"))),
    ];
    let mut reports: Vec<Value> = ["deb", "packed"]
        .iter()
        .map(|base| fs::read_to_string(bases.join(base).join("1/base.json")).unwrap())
        .map(|text| timeless(serde_json::from_str(&text).unwrap()))
        .collect();
    reports.extend([
        json(&["verify", "--all"]),
        json(&["check", "--all"]),
        json(&["map", "web"]),
        json(&["list"]),
    ]);
    // The same damage is found, and told in the same words.
    common::store::unseal(&shed.base_disk());
    must("chmod", &["u+w", shed.base_disk().to_str().unwrap()]);
    let damaged = File::options().write(true).open(shed.base_disk()).unwrap();
    (0..9).for_each(|n| damaged.write_all_at(&[n + 1], u64::from(n) * 4_000_000).unwrap());
    let (code, found, complaint) = say(&["verify", "deb"]);
    assert_eq!(code, Some(1), "{found}{complaint}");
    said.extend([found, complaint.replace(&shed.dir.path().display().to_string(), "")]);
    Results { files, reports, said }
}

#[test]
fn the_number_of_threads_never_changes_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let (image, packed) = (folder.path().join("in.raw"), folder.path().join("in.qcow2"));
    let newer = folder.path().join("later.raw");
    disk(&image);
    later(&image, &newer);
    let names = [image.to_str().unwrap(), packed.to_str().unwrap()];
    must("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", names[0], names[1]]);
    let images = [&image, &packed, &newer].map(PathBuf::as_path);
    let alone = results(images, "1");
    assert!(alone.said.iter().any(|said| said.contains("DAMAGED")), "{:?}", alone.said);
    for threads in ["2", "3", "8"] {
        let together = results(images, threads);
        for (one, other) in alone.files.iter().zip(&together.files) {
            assert_eq!(one, other, "{threads} threads");
        }
        for (one, other) in alone.reports.iter().zip(&together.reports) {
            assert_eq!(one, other, "{threads} threads");
        }
        assert_eq!(alone.said, together.said, "{threads} threads");
    }
}
