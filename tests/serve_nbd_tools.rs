//! A disk by NBD under the tools that people use: those of QEMU, libnbd and fio.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/serving.rs"]
mod serving;

use common::store::{file_digest, must, qemu_check};
use common::{DISK, noise};
use serde_json::Value;
use serving::{Server, shed};
use std::fs;
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `qemu-io` with one `-c` for each of `commands`.
fn qemu_io(uri: &str, arguments: &[&str], commands: &[&str]) -> String {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let said = must("qemu-io", &[arguments, &["-f", "raw"], &commands.collect::<Vec<_>>(), &[uri]].concat());
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    said
}

/// What is zero, by byte.
fn zeros(map: &str, from: &str, len: &str, is_zero: impl Fn(&Value) -> bool) -> Vec<bool> {
    let mut zeros = Vec::new();
    for extent in serde_json::from_str::<Vec<Value>>(map).unwrap() {
        assert_eq!(extent[from].as_u64(), Some(zeros.len() as u64), "a gap");
        let len = usize::try_from(extent[len].as_u64().unwrap()).unwrap();
        zeros.resize(zeros.len() + len, is_zero(&extent));
    }
    zeros
}

#[test]
fn tools_of_qemu_read_write_and_map_a_clone() {
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let (image, out) = (shed.path("deb.raw"), shed.path("out.qcow2"));
    let server = Server::start(&shed, "--nbd", &["web"]);
    let uri = server.address();
    let info: Value = serde_json::from_str(&must("qemu-img", &["info", "--output=json", &uri])).unwrap();
    assert_eq!(info["virtual-size"], DISK);
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &uri]);
    qemu_io(
        &uri,
        &["-d", "unmap"],
        &[
            "write -P 7 3M 5000",
            "write -P 8 -f 40000 70000",
            "read -P 7 3M 5000",
            "discard 4M 1M",
            "read -P 0 4M 1M",
            "write -z 6M 64k",
            "write -z -u 7M 100k",
            "read -P 0 6M 64k",
            "aio_write -P 9 8M 1M",
            "aio_write -P 10 10M 20M",
            "aio_read 12M 4M",
            "aio_flush",
            "read -P 10 10M 20M",
            "flush",
        ],
    );
    must(
        "qemu-img",
        &["bench", "-f", "raw", "-w", "-c", "400", "-d", "32", "-s", "4096", "-S", "12288", &uri],
    );
    must("qemu-img", &["bench", "-f", "raw", "-c", "400", "-d", "32", "-s", "65536", &uri]);
    let map = must("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let by_tool = zeros(&map, "start", "length", |extent| extent["zero"] == true);
    let map = must("nbdinfo", &["--map", "--json", &uri]);
    let by_other_tool = zeros(&map, "offset", "length", |extent| extent["type"] == 3);
    must("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&out)]);
    must("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", text(&out), &uri]);
    server.end("-TERM");
    let own = zeros(&shed.ok(&["map", "web", "--json"]), "start", "length", |extent| extent["zero"] == true);
    assert!(own == by_tool && own == by_other_tool);
    assert!(own.contains(&true) && own.contains(&false));
    must("qemu-img", &["compare", text(&out), text(&shed.delta("web"))]);
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn copies_go_both_ways_over_several_connections() {
    let shed = shed();
    let base = file_digest(&shed.base_disk());
    let (from, out) = (shed.path("from.raw"), shed.path("out.raw"));
    let mut bytes = noise(DISK, 5);
    bytes[5 << 20..19 << 20].fill(0);
    fs::write(&from, &bytes).unwrap();
    let server = Server::start(&shed, "--nbd", &["web"]);
    let uri = server.address();
    must("nbdcopy", &["--connections=3", "--requests=16", "--flush", text(&from), &uri]);
    must("nbdcopy", &["--connections=3", &uri, text(&out)]);
    assert!(fs::read(&out).unwrap() == bytes);
    let info: Value = serde_json::from_str(&must("nbdinfo", &["--json", &uri])).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "web");
    assert_eq!(export["export-size"], DISK);
    for can in ["can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!(export["contexts"][0], "base:allocation");
    assert!(must("nbdinfo", &["--list", &uri]).contains("export=\"web\""));
    must("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&shed.path("deb.raw")), &uri]);
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&shed.path("deb.raw")), &uri]);
    server.end("-TERM");
    // What was zero on the way in takes no room.
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
}

#[test]
fn a_base_is_read_only_and_says_so() {
    let shed = shed();
    let server = Server::start(&shed, "--nbd", &["deb"]);
    assert!(server.said().contains("deb@1 is served at nbd+unix:///?socket="));
    let uri = server.address();
    let info: Value = serde_json::from_str(&must("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&shed.path("deb.raw")), &uri]);
    let output = common::store::run("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]);
    assert!(!output.status.success());
    server.end("-TERM");
}

#[test]
fn what_fio_writes_at_random_it_finds_again() {
    let shed = shed();
    let server = Server::start(&shed, "--nbd", &["web"]);
    let uri = format!("--uri={}", server.address());
    let said = must(
        "fio",
        &[
            "--name=job",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bsrange=512-128k",
            "--bs_unaligned=1",
            "--norandommap=0",
            "--iodepth=16",
            "--size=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=7",
        ],
    );
    assert!(said.contains("err= 0"), "{said}");
    server.end("-TERM");
    qemu_check(&shed.delta("web"));
}
