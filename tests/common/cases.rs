//! Images of every kind that QEMU makes: the table that the reading and the writing tests share.
//!
//! Each case is a recipe of [`super::qemu::step`]s that leaves the image in `t.qcow2`; other files are below it.

use std::path::Path;

/// One image.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is, as a file name could say it.
    pub name: String,
    /// How it is made.
    pub steps: Vec<String>,
    /// What kind of state it is left in.
    pub state: State,
}

/// What checks say of a finished case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No error and no leak.
    Clean,
    /// Left behind by a crash: counts may be wrong, content is right.
    Dirty,
}

impl Case {
    fn new(name: impl Into<String>, steps: &[&str]) -> Self {
        Self {
            name: name.into(),
            steps: steps.iter().map(|step| (*step).to_owned()).collect(),
            state: State::Clean,
        }
    }

    /// Makes the image in `folder`.
    pub fn make(&self, folder: &Path) {
        for step in &self.steps {
            super::qemu::step(folder, step);
        }
    }
}

/// Writes, zeroes, discards and rewrites over the first 3 MiB, at borders that fit no cluster.
const MIX: &str = "write -P 17 0 3k; write -P 18 65024 1k; write -P 19 200k 300k; write -P 20 1000k 70k; \
    write -z 300k 40k; write -z -u 420k 33k; discard 1024k 16k; write -P 21 2048k 512; write -z 2560k 130k; \
    write -P 22 2600k 5k; discard 0 512; write -P 23 3000k 64k; discard 2900k 130k";

fn create(options: &str, rest: &str) -> String {
    format!("img create -q -f qcow2 -o {options} t.qcow2 {rest}")
}

fn mixed(name: impl Into<String>, options: &str, size: &str) -> Case {
    Case::new(name, &[&create(options, size), &format!("io t.qcow2 {MIX}")])
}

fn geometries(cases: &mut Vec<Case>) {
    for bits in 9..=21 {
        let size = 1u64 << bits;
        cases.push(mixed(format!("v3-cluster-{size}"), &format!("cluster_size={size}"), "4M"));
    }
    for bits in [9, 12, 16, 21] {
        let size = 1u64 << bits;
        cases.push(mixed(format!("v2-cluster-{size}"), &format!("compat=0.10,cluster_size={size}"), "4M"));
    }
    for bits in 14..=21 {
        let size = 1u64 << bits;
        let options = format!("extended_l2=on,cluster_size={size}");
        cases.push(mixed(format!("extended-cluster-{size}"), &options, "5M"));
    }
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let options = format!("refcount_bits={bits},cluster_size=4k");
        cases.push(mixed(format!("refcount-{bits}"), &options, "4M"));
        let options = format!("refcount_bits={bits},cluster_size=64k,extended_l2=on");
        cases.push(mixed(format!("extended-refcount-{bits}"), &options, "4M"));
    }
    for (name, size) in
        [("one-sector", "512"), ("half-cluster", "33280"), ("odd-tail", "5243392"), ("zero-size", "0")]
    {
        let writes = match name {
            "zero-size" => None,
            "one-sector" => Some("write -P 9 0 512"),
            "half-cluster" => Some("write -P 9 0 512; write -P 8 32768 512"),
            _ => Some("write -P 9 0 512; write -P 8 5242880 512; write -z 5111808 70k"),
        };
        for (prefix, options) in [("", "cluster_size=64k"), ("extended-", "extended_l2=on,cluster_size=128k")]
        {
            let mut case = Case::new(format!("{prefix}{name}"), &[&create(options, size)]);
            case.steps.extend(writes.map(|writes| format!("io t.qcow2 {writes}")));
            cases.push(case);
        }
    }
}

fn states(cases: &mut Vec<Case>) {
    for (prefix, options) in [("", "cluster_size=64k"), ("extended-", "extended_l2=on,cluster_size=128k")] {
        let case = |name: &str, steps: &[&str]| Case::new(format!("{prefix}{name}"), steps);
        let plain = create(options, "4M");
        cases.push(case("empty", &[&plain]));
        cases.push(case("full", &[&plain, "io t.qcow2 write -P 85 0 4M"]));
        cases.push(case("zero-unallocated", &[&plain, "io t.qcow2 write -z 0 1M; write -z 1500k 3k"]));
        cases.push(case(
            "zero-allocated",
            &[&plain, "io t.qcow2 write -P 7 0 2M; write -z 256k 512k; write -z 1537k 9k"],
        ));
        cases.push(case(
            "zero-unmapped",
            &[&plain, "io t.qcow2 write -P 7 0 2M; write -z -u 256k 512k; write -z -u 1537k 9k"],
        ));
        cases.push(case(
            "discarded",
            &[&plain, "io t.qcow2 write -P 7 0 3M; discard 128k 1M; discard 2049k 13k; write -P 8 256k 1k"],
        ));
        cases.push(case(
            "lazy",
            &[&create(&format!("{options},lazy_refcounts=on"), "4M"), &format!("io t.qcow2 {MIX}")],
        ));
        let mut dirty = case(
            "lazy-after-crash",
            &[
                &create(&format!("{options},lazy_refcounts=on"), "4M"),
                "dies t.qcow2 write -P 7 0 300k; write -P 8 1M 64k; flush; abort",
            ],
        );
        dirty.state = State::Dirty;
        cases.push(dirty);
        for mode in ["metadata", "falloc", "full"] {
            cases.push(case(
                &format!("preallocated-{mode}"),
                &[
                    &create(&format!("{options},preallocation={mode}"), "4M"),
                    "io t.qcow2 write -P 7 100k 200k",
                ],
            ));
        }
        cases.push(case(
            "grown",
            &[
                &plain,
                &format!("io t.qcow2 {MIX}"),
                "img resize -q t.qcow2 9M",
                "io t.qcow2 write -P 3 8M 64k",
            ],
        ));
        cases.push(case(
            "cut",
            &[&plain, &format!("io t.qcow2 {MIX}"), "img resize -q --shrink t.qcow2 2098176"],
        ));
        cases.push(case("bitmap", &[&plain, "img bitmap --add t.qcow2 b0", &format!("io t.qcow2 {MIX}")]));
    }
    cases.push(Case::new(
        "amended-to-v2",
        &[
            &create("cluster_size=64k", "4M"),
            "io t.qcow2 write -P 7 0 1M; write -P 9 2M 70k",
            "img amend -q -f qcow2 -o compat=0.10 t.qcow2",
        ],
    ));
    cases.push(Case::new(
        "amended-refcounts",
        &[
            &create("cluster_size=4k", "4M"),
            &format!("io t.qcow2 {MIX}"),
            "img amend -q -f qcow2 -o refcount_bits=64 t.qcow2",
        ],
    ));
}

fn compressed(cases: &mut Vec<Case>) {
    for (method, sizes) in [("zlib", &["512", "4k", "64k", "2M"][..]), ("zstd", &["512", "4k", "64k", "2M"])]
    {
        for size in sizes {
            cases.push(Case::new(format!("{method}-{size}"), &[
                "raw s.raw 4194304",
                "fill s.raw 70000 40000 5",
                "img create -q -f qcow2 s.qcow2 4M",
                "io s.qcow2 write -P 1 0 900k; write -P 2 1M 70k; write -P 3 3M 1M",
                &format!("img convert -q -c -f qcow2 -O qcow2 -o cluster_size={size},compression_type={method} s.qcow2 t.qcow2"),
            ]));
        }
        let convert = |options: &str| {
            format!("img convert -q -c -f raw -O qcow2 -o {options},compression_type={method} s.raw t.qcow2")
        };
        let random = ["raw s.raw 3145728", "fill s.raw 70000 40000 5", "fill s.raw 1000000 1000 6"];
        let mut steps = random.to_vec();
        let options = convert("cluster_size=64k");
        steps.extend([
            options.as_str(),
            "io t.qcow2 write -P 4 100k 10k; write -P 5 2M 64k; write -c -P 6 2560k 64k",
        ]);
        cases.push(Case::new(format!("{method}-incompressible-mixed"), &steps));
        let mut steps = random.to_vec();
        let options = convert("extended_l2=on,cluster_size=128k");
        steps.extend([
            options.as_str(),
            "io t.qcow2 write -P 4 100k 10k; write -z 1M 9k; write -c -P 6 2560k 128k",
        ]);
        cases.push(Case::new(format!("{method}-extended-mixed"), &steps));
    }
    cases.push(Case::new("zlib-v2-mixed", &[
        &create("compat=0.10,cluster_size=64k", "4M"),
        "io t.qcow2 write -c -P 1 0 64k; write -c -P 2 64k 64k; write -P 3 128k 64k; write -c -P 4 1M 64k; write -P 5 70k 1k",
    ]));
    cases.push(Case::new(
        "zlib-odd-tail",
        &[
            "raw s.raw 1000448",
            "fill s.raw 900000 100000 8",
            "img convert -q -c -f raw -O qcow2 s.raw t.qcow2",
        ],
    ));
}

fn snapshots(cases: &mut Vec<Case>) {
    let geometries = [
        ("v3", "cluster_size=64k"),
        ("v2", "compat=0.10,cluster_size=64k"),
        ("small", "cluster_size=512"),
        ("narrow", "refcount_bits=2,cluster_size=4k"),
        ("extended", "extended_l2=on,cluster_size=128k"),
    ];
    for (name, options) in geometries {
        cases.push(Case::new(format!("snapshot-{name}"), &[
            &create(options, "4M"),
            &format!("io t.qcow2 {MIX}"),
            "img snapshot -q -c first t.qcow2",
            "io t.qcow2 write -P 40 0 5k; write -P 41 210k 1k; discard 1000k 64k; write -z 350k 64k; write -P 42 3500k 70k",
        ]));
        cases.push(Case::new(
            format!("snapshots-two-{name}"),
            &[
                &create(options, "4M"),
                &format!("io t.qcow2 {MIX}"),
                "img snapshot -q -c first t.qcow2",
                "io t.qcow2 write -P 40 0 5k; write -P 41 210k 1k",
                "img snapshot -q -c second t.qcow2",
                "io t.qcow2 write -P 50 1k 5k; write -P 51 220k 90k",
            ],
        ));
    }
    cases.push(Case::new(
        "snapshot-of-compressed",
        &[
            &create("cluster_size=64k", "4M"),
            "io t.qcow2 write -c -P 1 0 64k; write -c -P 2 64k 64k; write -P 3 1M 64k",
            "img snapshot -q -c first t.qcow2",
            "io t.qcow2 write -P 5 10k 1k",
        ],
    ));
    cases.push(Case::new(
        "snapshot-deleted",
        &[
            &create("cluster_size=64k", "4M"),
            &format!("io t.qcow2 {MIX}"),
            "img snapshot -q -c first t.qcow2",
            "io t.qcow2 write -P 40 0 500k",
            "img snapshot -q -d first t.qcow2",
        ],
    ));
    cases.push(Case::new(
        "vm-state",
        &[
            &create("cluster_size=64k", "4M"),
            &format!("io t.qcow2 {MIX}; write -b -P 77 0 128k"),
            "img snapshot -q -c first t.qcow2",
            "io t.qcow2 write -P 40 0 5k",
        ],
    ));
}

/// A raw base of 3 MiB with data, holes and zeros.
const RAW_BASE: [&str; 4] = [
    "raw b.raw 3145728",
    "fill b.raw 0 70000 1",
    "fill b.raw 500000 300000 2",
    "fill b.raw 3000000 145728 3",
];
const OVER: &str = "write -P 17 3k 2k; write -P 18 65024 1k; write -z 520k 100k; write -P 19 1M 64k; \
    write -z 2900k 10k; discard 0 64k; discard 600k 128k; write -P 20 640k 512";

fn chains(cases: &mut Vec<Case>) {
    let geometries = [
        ("v3", "cluster_size=64k"),
        ("v2", "compat=0.10"),
        ("extended", "extended_l2=on,cluster_size=128k"),
        ("tiny", "cluster_size=512"),
    ];
    for (name, options) in geometries {
        for (relation, size) in [("same", "3M"), ("larger", "5M"), ("smaller", "2M"), ("odd", "3146240")] {
            let mut steps: Vec<String> = RAW_BASE.iter().map(|step| (*step).to_owned()).collect();
            steps.push(create(&format!("{options},backing_file=b.raw,backing_fmt=raw"), size));
            steps.push(format!(
                "io t.qcow2 {}",
                if size == "2M" { OVER.replace("2900k", "1900k") } else { OVER.to_owned() }
            ));
            cases.push(Case { name: format!("{name}-over-raw-{relation}"), steps, state: State::Clean });
        }
        cases.push(Case::new(
            format!("{name}-over-qcow2"),
            &[
                "img create -q -f qcow2 -o cluster_size=4k b.qcow2 3M",
                &format!("io b.qcow2 {}", MIX.replace("3000k", "2970k")),
                &create(&format!("{options},backing_file=b.qcow2,backing_fmt=qcow2"), "4M"),
                &format!("io t.qcow2 {OVER}"),
            ],
        ));
    }
    let mut steps: Vec<&str> = RAW_BASE.to_vec();
    let top = create("extended_l2=on,cluster_size=128k,backing_file=c.qcow2,backing_fmt=qcow2", "5M");
    let over = format!("io t.qcow2 {OVER}");
    steps.extend([
        "img create -q -f qcow2 -o backing_file=b.raw,backing_fmt=raw,cluster_size=4k m.qcow2 2M",
        "io m.qcow2 write -P 60 32k 8k; write -z 1M 64k; write -P 61 2040k 8k",
        "img create -q -f qcow2 -o backing_file=m.qcow2,backing_fmt=qcow2,extended_l2=on,cluster_size=64k c.qcow2 4M",
        "io c.qcow2 write -P 62 36k 8k; write -P 63 3M 70k; write -z 64k 5k",
        &top,
        &over,
    ]);
    cases.push(Case::new("chain-of-four", &steps));
    let mut steps: Vec<&str> = RAW_BASE.to_vec();
    let top = create("compat=0.10,backing_file=m.qcow2,backing_fmt=qcow2", "3M");
    steps.extend([
        "img convert -q -c -f raw -O qcow2 b.raw m.qcow2",
        &top,
        "io t.qcow2 write -P 5 500k 100k; write -c -P 6 1M 64k",
        "img snapshot -q -c first t.qcow2",
        "io t.qcow2 write -P 8 510k 4k",
    ]);
    cases.push(Case::new("snapshot-over-compressed", &steps));
    cases.push(Case::new(
        "over-raw-of-odd-bytes",
        &[
            "raw b.raw 100777",
            "fill b.raw 90000 10777 4",
            &create("cluster_size=64k,backing_file=b.raw,backing_fmt=raw", "1M"),
            "io t.qcow2 write -P 5 512 512",
        ],
    ));
}

/// The whole table.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    geometries(&mut cases);
    states(&mut cases);
    compressed(&mut cases);
    snapshots(&mut cases);
    chains(&mut cases);
    cases
}
