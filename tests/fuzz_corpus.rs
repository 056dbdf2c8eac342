//! Hostile input: every kept input of the fuzz targets, every past finding, and mutations of them.
//!
//! `COWSHED_SEED=N cargo test --test fuzz_corpus` draws other mutations. `tests/tools/fuzz.sh` searches for new inputs.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "fuzz/src/lib.rs"]
mod fuzz;
mod common {
    pub mod rng;
}

use common::rng::{Rng, seed_from_environment};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

#[global_allocator]
static ALLOCATOR: fuzz::Counting = fuzz::Counting;

/// Memory is counted for the process, so one target runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The inputs that are kept for `target`, by name.
fn kept(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    // What QEMU is asked about are the images of the target `image`.
    let from = if target == "qemu" { "image" } else { target };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let mut inputs = Vec::new();
    for folder in ["corpus", "findings"] {
        let entries = std::fs::read_dir(root.join(folder).join(from));
        for entry in entries.into_iter().flatten() {
            let path = entry.unwrap().path();
            inputs.push((path.clone(), std::fs::read(path).unwrap()));
        }
    }
    inputs.sort();
    assert!(inputs.len() >= 10, "only {} inputs for {target} below {}", inputs.len(), root.display());
    inputs
}

/// A change like those that libFuzzer makes.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    for _ in 0..rng.between(1, 4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let len = rng.between(1, 8).min((bytes.len() - at) as u64) as usize;
        match rng.below(7) {
            0 if len > 0 => bytes[at] ^= 1 << rng.below(8),
            1 if len > 0 => bytes[at] = rng.bits() as u8,
            2 => bytes[at..at + len].fill(*rng.pick(&[0, 1, 0x7f, 0x80, 0xff])),
            3 => drop(bytes.drain(at..at + len)),
            4 => drop(bytes.splice(at..at, rng.bytes(len.max(1)))),
            5 if !other.is_empty() => {
                let from = rng.below(other.len() as u64) as usize;
                let end = other.len().min(from + rng.between(1, 64) as usize);
                let to = bytes.len().min(at + (end - from));
                bytes.splice(at..to, other[from..end].iter().copied());
            }
            _ if len > 1 => bytes[at..at + len].reverse(),
            _ => bytes.push(rng.bits() as u8),
        }
    }
}

fn run(target: fn(&[u8]), name: &str, data: &[u8], faults: &mut Vec<String>) {
    let result = catch_unwind(AssertUnwindSafe(|| fuzz::bounded(target, data)));
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        faults.push(format!("{name}: {text}\n  the input: {}", hex(data)));
    }
}

fn hex(data: &[u8]) -> String {
    data.iter().take(4096).map(|byte| format!("{byte:02x}")).collect()
}

/// Replays what is kept for a target, then `mutations` changed inputs.
fn replay(name: &str, mutations: u64) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (_, target) = *fuzz::TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let (inputs, mut faults) = (kept(name), Vec::new());
    for (path, data) in &inputs {
        run(target, &path.display().to_string(), data, &mut faults);
    }
    let first = seed_from_environment().unwrap_or(1);
    for seed in first..first + mutations {
        let mut rng = Rng::new(seed);
        let mut data = rng.pick(&inputs).1.clone();
        mutate(&mut data, &rng.pick(&inputs).1.clone(), &mut rng);
        run(target, &format!("mutation {seed}"), &data, &mut faults);
    }
    println!("{name}: {} inputs, mutations from seed {first} on: {mutations}", inputs.len());
    let shown = faults.len().min(5);
    assert!(faults.is_empty(), "{} faults, the first:\n{}", faults.len(), faults[..shown].join("\n"));
}

#[test]
fn filesystems_are_read_within_bounds_or_refused() {
    replay("ext4", 30_000);
}

#[test]
fn fat_filesystems_are_read_and_changed_within_bounds_or_refused() {
    replay("fat", 10_000);
}

/// Small filesystems by mkfs.vfat and mtools, and a swap space: `cargo test --test fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes tests/fuzz/corpus/fat"]
fn the_corpus_of_fat_filesystems_is_made() {
    const SETS: [(&str, u64, &[&str], u8); 10] = [
        ("twelve", 128, &["-F", "12", "-r", "16"], 0),
        ("twelve-changed", 128, &["-F", "12", "-r", "16"], 0x85),
        ("twelve-one-table", 192, &["-F", "12", "-f", "1", "-s", "4"], 1),
        ("twelve-sectors", 512, &["-F", "12", "-S", "2048", "-s", "1"], 2),
        ("twelve-clusters", 1024, &["-F", "12", "-s", "32", "-n", "LABEL"], 0x83),
        ("sixteen", 2560, &["-F", "16", "-s", "1"], 0),
        ("sixteen-changed", 2560, &["-F", "16", "-s", "1", "-n", "LABEL"], 0x91),
        ("thirty-two", 2560, &["-F", "32", "-s", "1", "-f", "1"], 0),
        ("thirty-two-changed", 4096, &["-F", "32", "-s", "8", "-n", "LABEL"], 0x82),
        ("swap", 64, &[], 0),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/fat");
    std::fs::create_dir_all(&root).unwrap();
    for (name, size, arguments, change) in SETS {
        let bytes = if name == "swap" { small_swap(size << 10) } else { small_fat(size << 10, arguments) };
        let input = fuzz::encode_ext4(change, &bytes);
        assert!(input.len() <= 24 << 10, "{name}: {} bytes", input.len());
        std::fs::write(root.join(name), input).unwrap();
    }
}

fn small_swap(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    bytes[1024] = 1;
    bytes[1028] = 15;
    bytes[4086..4096].copy_from_slice(b"SWAPSPACE2");
    bytes
}

fn small_fat(size: u64, arguments: &[&str]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let (image, text) = (dir.path().join("image"), dir.path().join("text"));
    let run = |command: &mut Command| {
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{command:?}");
    };
    std::fs::File::create(&image).unwrap().set_len(size).unwrap();
    run(Command::new("mkfs.vfat").args(["-i", "c0ffee00"]).args(arguments).arg(&image));
    if arguments.contains(&"32") {
        // So small a one mtools does not take.
        return std::fs::read(&image).unwrap();
    }
    std::fs::write(&text, "text ".repeat(500)).unwrap();
    let mtools = |name: &str| {
        let mut command = Command::new(name);
        command.env("LC_ALL", "C.UTF-8").arg("-i").arg(&image);
        command
    };
    run(mtools("mmd").args(["::/EFI", "::/EFI/a long folder"]));
    for name in ["ONE.EFI", "EFI/two words.txt", "EFI/lower.cfg", "EFI/a long folder/three.bin"] {
        run(mtools("mcopy").arg(&text).arg(format!("::/{name}")));
    }
    run(mtools("mdel").arg("::/EFI/lower.cfg"));
    std::fs::read(&image).unwrap()
}

#[test]
fn free_space_of_any_disk_lies_inside_of_it() {
    replay("free", 20_000);
}

/// Small disks of all kinds, as the target takes them: `cargo test --test fuzz_corpus -- --ignored`, as root.
#[test]
#[ignore = "writes tests/fuzz/corpus/free"]
fn the_corpus_of_free_space_is_made() {
    use std::process::Command;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/free");
    std::fs::create_dir_all(&root).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let file = dir.path().join("file");
    std::fs::write(&file, "text ".repeat(500)).unwrap();
    let run = |line: &str| {
        let line = line.replace("IMAGE", image.to_str().unwrap()).replace("FILE", file.to_str().unwrap());
        assert!(Command::new("sh").args(["-ec", &line]).status().unwrap().success(), "{line}");
    };
    // pvcreate and its like see only a block device.
    let lvm = r#"device=$(losetup -f --show IMAGE); trap "losetup -d $device" EXIT
        config="devices { filter=[\"a|^$device\$|\",\"r|.*|\"] use_devicesfile=0 scan_lvs=0 obtain_device_list_from_udev=0 }
            activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
        lvm() { program=$1; shift; $program -q --config "$config" --driverloaded n "$@"; }
        lvm pvcreate --metadatasize 60k --dataalignment 64k $device
        lvm vgcreate -s 64k vg $device
        lvm lvcreate -an -Zn -Wn -y -n root -L 1M vg
        lvm lvcreate -an -Zn -Wn -y -n home -L 256k vg
        lvm lvextend -L +128k vg/root"#;
    for (name, size, seal, lines) in [
        ("swap", 256, 0, "mkswap -q IMAGE"),
        ("fat12", 192, 0, "mkfs.vfat -F 12 -r 16 IMAGE; mmd -i IMAGE ::/a; mcopy -i IMAGE FILE ::/a/file"),
        (
            "fat16",
            4096,
            0,
            "mkfs.vfat -F 16 -s 1 -r 16 IMAGE; mmd -i IMAGE ::/a; mcopy -i IMAGE FILE ::/a/file",
        ),
        ("fat32", 4096, 0, "mkfs.vfat -F 32 -s 1 IMAGE"),
        ("ntfs", 2048, 0, "mkntfs -F -Q -q -c 512 IMAGE; ntfscp -q IMAGE FILE file"),
        ("lvm", 4096, 8, lvm),
        ("gpt", 4096, 16, "sgdisk -a 64 -n1:64:+1M -n2:5120:+256K IMAGE"),
        (
            "mbr",
            4096,
            0,
            "printf '64,1024,83\n2048,4096,5\n,,0\n,,0\n2112,512,82\n3000,,83\n' | sfdisk -q IMAGE",
        ),
    ] {
        std::fs::File::create(&image).unwrap().set_len(size << 10).unwrap();
        run(&format!("{{ {lines}; }} >/dev/null"));
        let mut bytes = std::fs::read(&image).unwrap();
        // The table of capital letters is large, and nothing reads it.
        let capitals = bytes.windows(8).position(|window| window == [0, 0, 1, 0, 2, 0, 3, 0]);
        if let Some(at) = capitals.filter(|_| name == "ntfs") {
            bytes[at..at + (128 << 10)].fill(0);
        }
        let input = fuzz::encode_ext4(seal, &bytes);
        assert!(input.len() <= 32 << 10, "{name}: {} bytes", input.len());
        std::fs::write(root.join(name), input).unwrap();
    }
    for name in ["extents", "journal-sums", "clusters", "ext2"] {
        std::fs::copy(root.with_file_name("ext4").join(name), root.join(name)).unwrap();
    }
}

/// Small filesystems by mke2fs and debugfs, as the target takes them: `cargo test --test fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes tests/fuzz/corpus/ext4"]
fn the_corpus_of_filesystems_is_made() {
    const SETS: [(&str, u64, &[&str], u8); 10] = [
        ("ext2", 64, &["-t", "ext2", "-b", "1024", "-N", "32"], 0),
        ("ext2-4k", 256, &["-t", "ext2", "-b", "4096", "-N", "32", "-I", "128"], 0),
        (
            "plain",
            128,
            &["-t", "ext4", "-b", "1024", "-N", "32", "-O", "^has_journal,^metadata_csum,^resize_inode"],
            0,
        ),
        ("extents", 256, &["-t", "ext4", "-b", "1024", "-N", "32", "-O", "^has_journal,^resize_inode"], 7),
        (
            "sums",
            128,
            &["-t", "ext4", "-b", "1024", "-N", "32", "-O", "^has_journal,^64bit,^resize_inode"],
            7,
        ),
        (
            "inline",
            128,
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-N",
                "32",
                "-O",
                "^has_journal,inline_data,^metadata_csum,^resize_inode",
            ],
            0,
        ),
        (
            "values",
            128,
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-N",
                "32",
                "-O",
                "^has_journal,ea_inode,^metadata_csum,^resize_inode",
            ],
            0,
        ),
        (
            "clusters",
            2048,
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-N",
                "32",
                "-C",
                "4096",
                "-O",
                "bigalloc,^has_journal,^metadata_csum,^resize_inode",
            ],
            0,
        ),
        (
            "journal",
            4096,
            &["-t", "ext4", "-b", "1024", "-N", "32", "-J", "size=1", "-O", "^metadata_csum,^resize_inode"],
            0,
        ),
        (
            "journal-sums",
            4096,
            &["-t", "ext4", "-b", "1024", "-N", "32", "-J", "size=1", "-O", "^resize_inode"],
            7,
        ),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/ext4");
    std::fs::create_dir_all(&root).unwrap();
    for (name, size, arguments, seal) in SETS {
        let input =
            fuzz::encode_ext4(seal, &small_filesystem(size << 10, arguments, name.starts_with("journal")));
        assert!(input.len() <= 16 << 10, "{name}: {} bytes", input.len());
        std::fs::write(root.join(name), input).unwrap();
    }
}

fn small_filesystem(size: u64, arguments: &[&str], has_log: bool) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let (image, text, requests) =
        (dir.path().join("image"), dir.path().join("text"), dir.path().join("requests"));
    let run = |command: &mut Command| {
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{command:?}");
    };
    std::fs::File::create(&image).unwrap().set_len(size).unwrap();
    run(Command::new("mke2fs").args(["-q", "-F", "-m", "0"]).args(arguments).arg(&image));
    std::fs::write(&text, "text ".repeat(500)).unwrap();
    let log = if has_log { "jo -c\njw -b 3000-3001 TEXT\njw -b 3002 -r 3000 TEXT\njc\n" } else { "" };
    let script = "rmdir lost+found\nwrite TEXT file\nmkdir folder\nsymlink short target\nmknod null c 1 3\nmknod pipe p\n\
        symlink long this-target-is-too-long-to-be-in-the-inode-itself-and-has-a-block-of-its-own\n\
        ea_set file user.name value\nea_set -f TEXT folder user.long\nset_inode_field file mode 0100640\n";
    let script = [script, log].concat().replace("TEXT", text.to_str().unwrap());
    std::fs::write(&requests, script).unwrap();
    run(Command::new("debugfs").args(["-w", "-f"]).arg(&requests).arg(&image).stderr(Stdio::null()));
    std::fs::read(&image).unwrap()
}

#[test]
fn headers_and_tables_end_in_a_sentence() {
    replay("header", 10_000);
}

#[test]
fn images_read_right_take_writes_and_are_mended_or_refused() {
    replay("image", 10_000);
}

#[test]
fn partitions_lie_inside_the_disk() {
    replay("partitions", 20_000);
}

#[test]
fn manifests_names_and_messages_end_in_a_sentence() {
    replay("texts", 3_000);
}

#[test]
fn a_virtio_device_answers_each_request_once_and_writes_only_where_it_may() {
    replay("virtio", 8_000);
}

/// Requests of each kind: `cargo test --test fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes tests/fuzz/corpus/virtio"]
fn the_corpus_of_virtio_requests_is_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/virtio");
    std::fs::create_dir_all(&root).unwrap();
    for (name, input) in fuzz::virtio_corpus() {
        std::fs::write(root.join(name), input).unwrap();
    }
}

#[test]
fn an_nbd_client_gets_one_answer_to_each_request_and_the_disk_that_it_wrote() {
    replay("nbd", 8_000);
}

/// Talks of each kind: `cargo test --test fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes tests/fuzz/corpus/nbd"]
fn the_corpus_of_nbd_talks_is_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/nbd");
    std::fs::create_dir_all(&root).unwrap();
    for (name, input) in fuzz::nbd_corpus() {
        std::fs::write(root.join(name), input).unwrap();
    }
}

#[test]
fn images_read_as_qemu_reads_them_and_errors_that_it_finds_are_found() {
    replay("qemu", 60);
}
