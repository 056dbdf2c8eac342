//! Every command that changes a store, run in this process, on a store that has something of everything.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

use super::shown::{Built, Shown, listing, probe, say, shown};
use super::store::{base_ref, must, name, sample};
use super::world::World;
use cowshed::ops::Silent;
use cowshed::ops::check::check_clone;
use cowshed::ops::export::{ExportRequest, export};
use cowshed::ops::fold::remove_checkpoint;
use cowshed::ops::gc::gc;
use cowshed::ops::import::{ImportRequest, import, promote};
use cowshed::ops::merge::rules::Rules;
use cowshed::ops::rebase::{MergeSettings, RebaseRequest, Strategy, rebase, rebase_waiting};
use cowshed::ops::resize::{ResizeRequest, Size, resize};
use cowshed::ops::shrink::{shrink, shrink_base};
use cowshed::ops::verify::reseal;
use cowshed::storage::Watch;
use cowshed::store::{Access, BaseRef, Canary, CloneOptions, DiskFormat, Name, Store, Target};
use cowshed::units::GuestOffset;
use cowshed::{Kind, Result};
use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

/// Bytes of the bases.
const SIZE: usize = 192 << 10;

/// Where a command works, and who watches it.
pub struct Place {
    pub dir: PathBuf,
    pub watch: Option<Arc<dyn Watch>>,
}

impl Place {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), watch: None }
    }

    pub fn watched(dir: &Path, watch: Arc<dyn Watch>) -> Self {
        Self { dir: dir.to_owned(), watch: Some(watch) }
    }

    pub fn root(&self) -> PathBuf {
        root(&self.dir)
    }

    fn store(&self) -> Result<Store> {
        match &self.watch {
            Some(watch) => Store::open_watched(&self.root(), Arc::clone(watch)),
            None => Store::open(&self.root()),
        }
    }

    fn import(&self, file: &str, base: &str) -> Result<()> {
        self.import_as(file, base, false)
    }

    fn import_as(&self, file: &str, base: &str, update: bool) -> Result<()> {
        let store = match &self.watch {
            Some(watch) => Store::open_or_create_watched(&self.root(), Arc::clone(watch))?,
            None => Store::open_or_create(&self.root())?,
        };
        let request = ImportRequest {
            source: self.dir.join(file),
            format: None,
            update,
            name: name(base),
            follow_backing: false,
        };
        import(&store, &request, &Silent).map(drop)
    }

    fn clones(&self, names: &[String]) -> Result<()> {
        let names: Vec<Name> = names.iter().map(|one| name(one)).collect();
        let options =
            CloneOptions { labels: [("of".into(), "mine".into())].into(), ..CloneOptions::default() };
        self.store()?.create_clones(&base_ref("base"), &names, &options).map(drop)
    }

    fn rebase(&self, clone: &str, base: &str, strategy: Strategy) -> Result<()> {
        let onto = BaseRef::exact(name(base), 2);
        let program = PathBuf::from(env!("CARGO_BIN_EXE_cowshed"));
        let settings = MergeSettings { rules: Rules::preset()?, program };
        let request = RebaseRequest { clone: name(clone), onto, strategy, settings: settings.into() };
        rebase(&self.store()?, &request, &Silent).map(drop)
    }

    fn remove_checkpoint(&self, clone: &str, number: u32) -> Result<()> {
        remove_checkpoint(&self.store()?, &name(clone), number, &Silent).map(drop)
    }

    fn resize(&self, clone: &str, bytes: u64, image_only: bool, no_undo: bool) -> Result<()> {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_cowshed"));
        let size = Size::Bytes(bytes);
        let request = ResizeRequest { clone: base_ref(clone), size, image_only, no_undo, program };
        resize(&self.store()?, &request, &Silent).map(drop)
    }

    fn export(&self, what: Target, file: &str, format: DiskFormat, force: bool) -> Result<()> {
        let request = ExportRequest { target: what, out: self.dir.join("out").join(file), format, force };
        export(&self.store()?, &request, &Silent)
    }

    fn wait(&self, clone: &str, strategy: Strategy) -> Result<()> {
        let onto = BaseRef::exact(name("lines"), 2);
        self.store()?.wait_for_start(&name(clone), &onto, strategy, "clone /x\n").map(drop)
    }

    fn note_canary(&self, base: &str, clone: &str) -> Result<()> {
        let store = self.store()?;
        let run = Canary {
            onto: store.base(&BaseRef::exact(name(base), 2))?.id(),
            strategy: Strategy::Merge,
            rules: "clone /x\n".to_owned(),
            only: vec!["web-*".to_owned()],
            keep_disks: Vec::new(),
            clones: vec![name(clone)],
        };
        store.note_canary(&run)
    }

    fn gc(&self, base: &str) -> Result<()> {
        gc(&self.store()?, Some(&name(base)), true, &Silent, &mut |_| ())
    }

    /// A command that changes nothing: it finds what was left behind.
    pub fn tidy(&self) {
        let refused = self.store().and_then(|store| store.rename(&name("nobody"), &name("somebody")));
        assert_eq!(refused.unwrap_err().kind(), Kind::NotFound);
    }

    pub fn shown(&self) -> std::result::Result<Shown, String> {
        shown(&self.root(), &self.dir.join("out"))
    }
}

fn root(dir: &Path) -> PathBuf {
    dir.join("deep/er/store")
}

/// One command.
#[derive(Clone, Copy)]
pub struct Command {
    pub name: &'static str,
    pub run: fn(&Place) -> Result<()>,
    /// How it ends when it is run again after it succeeded; `None`: it succeeds again.
    pub again: Option<Kind>,
    /// Whether it finds no store yet.
    pub first: bool,
}

impl Command {
    /// The folder that it finds.
    pub fn start(&self) -> Built {
        match self.name {
            _ if self.first => nothing(),
            "gc" | "gc of a version between others" => versions(),
            "rm --checkpoint between others" => layers(),
            "shrink --recompress" => resting(),
            _ => everything(),
        }
    }
}

fn numbered(count: u32) -> Vec<String> {
    (1..=count).map(|number| format!("n-{number}")).collect()
}

fn scratch(place: &Place) -> Result<()> {
    let scratch = place.store()?.scratch(&Target::Clone(name("a")))?;
    scratch.disk.disk.write(&[9; 9000], GuestOffset(3000))?;
    scratch.disk.disk.flush()
}

fn reseal_checkpoints(place: &Place) -> Result<()> {
    place.store()?.reseal_checkpoints(&name("touched")).map(drop)
}

fn repair(place: &Place) -> Result<()> {
    let report = check_clone(&place.store()?, &name("leaky"), true)?;
    match report.errors() + report.leaks() {
        0 => Ok(()),
        _ => Err(cowshed::Error::io("not repaired", std::io::Error::other(format!("{report:?}")))),
    }
}

/// All commands.
pub fn all() -> Vec<Command> {
    type Run = fn(&Place) -> Result<()>;
    let table: [(&'static str, Option<Kind>, Run); 47] = [
        ("first import", Some(Kind::Exists), |p| p.import("one.raw", "base")),
        ("import", Some(Kind::Exists), |p| p.import("two.raw", "second")),
        ("import qcow2", Some(Kind::Exists), |p| p.import("three.qcow2", "third")),
        ("clone", Some(Kind::Exists), |p| p.clones(&numbered(1))),
        ("clone 3", Some(Kind::Exists), |p| p.clones(&numbered(3))),
        ("clone 9", Some(Kind::Exists), |p| p.clones(&numbered(9))),
        ("checkpoint", None, |p| p.store()?.checkpoint(&name("a"), Some("words")).map(drop)),
        ("checkpoint of a clone without any", None, |p| p.store()?.checkpoint(&name("b"), None).map(drop)),
        ("restore", None, |p| p.store()?.restore(&name("a"), 1, true).map(drop)),
        ("restore and discard", None, |p| p.store()?.restore(&name("a"), 2, false).map(drop)),
        ("rm --checkpoint", Some(Kind::NotFound), |p| p.remove_checkpoint("a", 2)),
        ("rm --checkpoint of the present chain", Some(Kind::NotFound), |p| p.remove_checkpoint("c", 1)),
        ("rm --checkpoint between others", Some(Kind::NotFound), |p| p.remove_checkpoint("h", 2)),
        ("rename", Some(Kind::Exists), |p| p.store()?.rename(&name("b"), &name("bb"))),
        ("rename a base", Some(Kind::Exists), |p| p.store()?.rename(&name("lone"), &name("alone"))),
        ("rm of a clone", Some(Kind::NotFound), |p| p.store()?.remove_clone(&name("b")).map(drop)),
        ("rm of a clone with checkpoints", Some(Kind::NotFound), |p| {
            p.store()?.remove_clone(&name("a")).map(drop)
        }),
        ("rm of a base", Some(Kind::NotFound), |p| p.store()?.remove_base(&base_ref("lone")).map(drop)),
        ("verify --reseal", None, |p| reseal(&p.store()?, &base_ref("moved"), &Silent).map(drop)),
        ("check --reseal", None, reseal_checkpoints),
        ("check --repair", None, repair),
        ("export raw", Some(Kind::Exists), |p| {
            p.export(Target::Clone(name("a")), "a.raw", DiskFormat::Raw, false)
        }),
        ("export qcow2", Some(Kind::Exists), |p| {
            p.export(Target::Clone(name("a")), "a.qcow2", DiskFormat::Qcow2, false)
        }),
        ("export --force", None, |p| p.export(Target::Base(base_ref("base")), "old", DiskFormat::Raw, true)),
        ("run --ephemeral", None, scratch),
        ("clone 8", Some(Kind::Exists), |p| p.clones(&numbered(8))),
        ("rename of a clone with checkpoints", Some(Kind::Exists), |p| {
            p.store()?.rename(&name("a"), &name("aa"))
        }),
        ("import --update", None, |p| p.import_as("one.raw", "lines", true)),
        ("promote", None, |p| promote(&p.store()?, &name("c"), &name("lines"), &Silent).map(drop)),
        ("gc", None, |p| p.gc("first")),
        ("gc of a version between others", None, |p| p.gc("middle")),
        ("shrink", None, |p| shrink(&p.store()?, &name("worn"), false, &Silent).map(drop)),
        ("shrink --recompress", None, |p| shrink(&p.store()?, &name("rests"), true, &Silent).map(drop)),
        ("shrink of a base", None, |p| shrink_base(&p.store()?, &base_ref("ext"), &Silent).map(drop)),
        ("rebase --strategy keep", None, |p| p.rebase("c", "lines", Strategy::Keep)),
        ("rebase --strategy replace", None, |p| p.rebase("c", "lines", Strategy::Replace)),
        ("rebase --strategy merge", None, |p| p.rebase("e", "os", Strategy::Merge)),
        ("resize --image-only", None, |p| p.resize("c", 200 << 10, true, false)),
        ("resize --no-undo", None, |p| p.resize("c", 200 << 10, true, true)),
        ("resize smaller", None, |p| p.resize("g", 384 << 10, false, false)),
        ("undo", Some(Kind::NotFound), |p| p.store()?.undo(&name("d")).map(drop)),
        ("rebase --at-next-start", None, |p| p.wait("c", Strategy::Keep)),
        ("rebase --at-next-start of a clone that waits", None, |p| p.wait("f", Strategy::Keep)),
        ("rebase --at-next-start --cancel", None, |p| p.store()?.stop_waiting(&name("f")).map(drop)),
        ("start of a clone that waits", None, |p| {
            let program = PathBuf::from(env!("CARGO_BIN_EXE_cowshed"));
            rebase_waiting(&p.store()?, &name("f"), program, &Silent).map(drop)
        }),
        ("rebase --canary", None, |p| p.note_canary("os", "e")),
        ("the end of rebase --continue", None, |p| p.store()?.forget_canary(&name("lines"))),
    ];
    table.map(|(name, again, run)| Command { name, run, again, first: name == "first import" }).into()
}

/// Commands that may come after any of the others; `first`: where there may be no store yet.
pub fn seconds(first: bool) -> Vec<Command> {
    type Run = fn(&Place) -> Result<()>;
    let table: [(&'static str, Run); 5] = [
        ("another import", |p| p.import("two.raw", "fourth")),
        ("another clone", |p| p.clones(&["other".to_owned()])),
        ("another checkpoint", |p| p.store()?.checkpoint(&name("a"), None).map(drop)),
        ("another checkpoint of b", |p| p.store()?.checkpoint(&name("b"), None).map(drop)),
        ("another removal", |p| p.store()?.remove_clone(&name("leaky")).map(drop)),
    ];
    let table = table.map(|(name, run)| Command { name, run, again: None, first });
    if first { table[..1].to_vec() } else { table.to_vec() }
}

pub fn command(name: &str) -> Command {
    all().into_iter().find(|command| command.name == name).unwrap_or_else(|| panic!("no command {name}"))
}

fn write(store: &Store, clone: &str, byte: u8, at: u64) {
    let open = store.open_clone(&name(clone), Access::Write).unwrap();
    open.disk.write(&[byte; 10_000], GuestOffset(at)).unwrap();
    open.close().unwrap();
    // So that a later change has a later time.
    std::thread::sleep(Duration::from_millis(10));
}

/// A small filesystem, a later state of it, and what a clone made of it.
fn systems() -> &'static [Vec<u8>; 3] {
    static SYSTEMS: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    SYSTEMS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        fs::create_dir_all(files.join("etc")).unwrap();
        fs::write(files.join("etc/conf"), "a\nb\nc\nd\ne\nf\ng\nh\n").unwrap();
        fs::write(files.join("etc/plain"), "plain\n").unwrap();
        for (file, text) in
            [("new-conf", "a\nB\nc\nd\ne\nf\ng\nh\n"), ("clone-conf", "a\nb\nc\nd\ne\nf\nG\nh\n")]
        {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let at = |file: &str| dir.path().join(file).to_str().unwrap().to_owned();
        must(
            "mke2fs",
            &["-q", "-t", "ext4", "-b", "1024", "-O", "^has_journal", "-d", &at("files"), &at("old"), "512"],
        );
        let edit = |image: &str, requests: &[&str]| {
            fs::copy(dir.path().join("old"), dir.path().join(image)).unwrap();
            requests.iter().for_each(|request| drop(must("debugfs", &["-w", "-R", request, &at(image)])));
        };
        let conf = |side: &str| format!("write {} etc/conf", at(&format!("{side}-conf")));
        edit("new", &["rm etc/conf", &conf("new"), &format!("write {} etc/added", at("new-conf"))]);
        edit(
            "clone",
            &["rm etc/conf", &conf("clone"), "mkdir home", &format!("write {} home/mine", at("clone-conf"))],
        );
        ["old", "new", "clone"].map(|image| fs::read(dir.path().join(image)).unwrap())
    })
}

/// A small filesystem, with blocks that hold what is deleted, without inodes that remember when it was made smaller.
fn filesystem() -> &'static [u8] {
    static FILESYSTEM: OnceLock<Vec<u8>> = OnceLock::new();
    FILESYSTEM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (image, files) = (dir.path().join("image"), dir.path().join("files"));
        fs::create_dir(&files).unwrap();
        fs::write(files.join("file"), sample(50_000)).unwrap();
        let gone = dir.path().join("gone");
        fs::write(&gone, sample(80_000)).unwrap();
        let (image, files) = (image.to_str().unwrap(), files.to_str().unwrap());
        let features = "^has_journal,^resize_inode";
        must("mke2fs", &["-q", "-t", "ext4", "-b", "1024", "-O", features, "-d", files, image, "512"]);
        // Blocks of a file that is gone keep what it had.
        for request in [&format!("write {} gone", gone.display()), "rm gone"] {
            must("debugfs", &["-w", "-R", request, image]);
        }
        fs::read(image).unwrap()
    })
}

/// Makes a clone of the first image the third one, sector by sector.
fn write_differences(store: &Store, clone: &str, [old, _, new]: &[Vec<u8>; 3]) {
    let open = store.open_clone(&name(clone), Access::Write).unwrap();
    for (number, (old, new)) in old.chunks(512).zip(new.chunks(512)).enumerate() {
        if old != new {
            open.disk.write(new, GuestOffset(number as u64 * 512)).unwrap();
        }
    }
    open.close().unwrap();
}

/// A folder with images and no store.
pub fn nothing() -> Built {
    let built = Built::empty();
    fs::create_dir(built.path().join("out")).unwrap();
    fs::write(built.path().join("out/old"), "what was there before").unwrap();
    fs::write(built.path().join("one.raw"), sample(SIZE)).unwrap();
    let two: Vec<u8> = sample(SIZE / 2).iter().map(|byte| byte ^ 0x55).collect();
    let mut edited = two.clone();
    edited[10_000..30_000].fill(0xed);
    fs::write(built.path().join("two.raw"), two).unwrap();
    fs::write(built.path().join("edited.raw"), edited).unwrap();
    let [old, new, _] = systems();
    fs::write(built.path().join("os.raw"), old).unwrap();
    fs::write(built.path().join("os-new.raw"), new).unwrap();
    fs::write(built.path().join("ext.raw"), filesystem()).unwrap();
    built
}

/// A folder with a store that has something of everything.
pub fn everything() -> Built {
    let built = nothing();
    let place = Place::new(built.path());
    place.import("one.raw", "base").unwrap();
    place.import("two.raw", "lone").unwrap();
    place.import("two.raw", "moved").unwrap();
    let store = place.store().unwrap();
    let names = ["a", "b", "touched", "leaky", "worn"].map(name);
    store.create_clones(&base_ref("base"), &names, &CloneOptions::default()).unwrap();
    place.import("two.raw", "lines").unwrap();
    store.create_clones(&base_ref("lines"), &["c", "d"].map(name), &CloneOptions::default()).unwrap();
    place.import_as("edited.raw", "lines", true).unwrap();
    store.create_clones(&BaseRef::exact(name("lines"), 1), &[name("f")], &CloneOptions::default()).unwrap();
    write(&store, "f", 5, 50_000);
    place.wait("f", Strategy::Replace).unwrap();
    place.note_canary("lines", "f").unwrap();
    write(&store, "c", 3, 20_000);
    store.checkpoint(&name("c"), None).unwrap();
    write(&store, "c", 4, 40_000);
    write(&store, "d", 8, 30_000);
    place.rebase("d", "lines", Strategy::Replace).unwrap();
    place.import("os.raw", "os").unwrap();
    store.create_clones(&base_ref("os"), &[name("e")], &CloneOptions::default()).unwrap();
    place.import_as("os-new.raw", "os", true).unwrap();
    write_differences(&store, "e", systems());
    place.import("ext.raw", "ext").unwrap();
    store.create_clones(&base_ref("ext"), &[name("g")], &CloneOptions::default()).unwrap();
    write(&store, "a", 1, 5000);
    store.checkpoint(&name("a"), Some("one")).unwrap();
    write(&store, "a", 2, 60_000);
    store.checkpoint(&name("a"), None).unwrap();
    store.restore(&name("a"), 1, false).unwrap();
    write(&store, "a", 7, 120_000);
    write(&store, "b", 4, 0);
    wear(&store);
    write(&store, "touched", 5, 0);
    store.checkpoint(&name("touched"), None).unwrap();
    place.export(Target::Clone(name("b")), "../three.qcow2", DiskFormat::Qcow2, false).unwrap();
    touch(&root(built.path()).join("clones/touched/checkpoint-1.qcow2"));
    touch(&root(built.path()).join("bases/moved/1/disk.raw"));
    leak(&store);
    built
}

/// The same with two bases that have a version which nothing needs: their first one, and one between two others.
pub fn versions() -> Built {
    let built = everything();
    let place = Place::new(built.path());
    place.import("two.raw", "first").unwrap();
    place.import_as("edited.raw", "first", true).unwrap();
    place.import("two.raw", "middle").unwrap();
    let store = place.store().unwrap();
    store.create_clones(&base_ref("middle"), &[name("pinned")], &CloneOptions::default()).unwrap();
    place.import_as("edited.raw", "middle", true).unwrap();
    let mut last = fs::read(built.path().join("edited.raw")).unwrap();
    last[60_000..70_000].fill(0x1a);
    fs::write(built.path().join("last.raw"), last).unwrap();
    place.import_as("last.raw", "middle", true).unwrap();
    built
}

/// The same with a clone of four layers.
pub fn layers() -> Built {
    let built = everything();
    let store = Place::new(built.path()).store().unwrap();
    store.create_clones(&base_ref("base"), &[name("h")], &CloneOptions::default()).unwrap();
    for (byte, at) in [(1, 5000), (2, 9000), (3, 60_000)] {
        write(&store, "h", byte, at);
        store.checkpoint(&name("h"), None).unwrap();
    }
    write(&store, "h", 4, 64_000);
    built
}

/// The same with a clone that has written a whole cluster of what can be compressed.
pub fn resting() -> Built {
    let built = everything();
    let store = Place::new(built.path()).store().unwrap();
    store.create_clones(&base_ref("base"), &[name("rests")], &CloneOptions::default()).unwrap();
    let open = store.open_clone(&name("rests"), Access::Write).unwrap();
    let text: Vec<u8> = sample(150_000).iter().map(|byte| b'a' + byte % 16).collect();
    open.disk.write(&text, GuestOffset(0)).unwrap();
    open.close().unwrap();
    built
}

/// A clone whose file begins with what the base has as well, and ends with bytes of its own.
fn wear(store: &Store) {
    let open = store.open_clone(&name("worn"), Access::Write).unwrap();
    open.disk.write(&sample(SIZE)[..150_000], GuestOffset(0)).unwrap();
    open.disk.flush().unwrap();
    open.disk.write(&[7; 9000], GuestOffset(160_000)).unwrap();
    open.close().unwrap();
}

/// As a restored backup has other times.
fn touch(path: &Path) {
    super::store::unseal(path);
    let file = File::open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000))).unwrap();
}

/// As a process leaves a clone that is killed while it writes: clusters that are counted and not used.
fn leak(store: &Store) {
    let path = store.path(&Target::Clone(name("leaky"))).unwrap();
    let open = store.open_clone(&name("leaky"), Access::Write).unwrap();
    open.disk.write(&[6; 10_000], GuestOffset(0)).unwrap();
    open.disk.flush().unwrap();
    let killed = fs::read(&path).unwrap();
    open.close().unwrap();
    fs::write(&path, killed).unwrap();
    assert!(check_clone(store, &name("leaky"), false).unwrap().leaks() > 0);
}

/// What a folder shows, and the names in it, after the commands that come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Later {
    pub shown: Shown,
    pub names: BTreeSet<PathBuf>,
}

impl Later {
    /// Runs those commands in the folder of `place`.
    pub fn of(place: &Place) -> std::result::Result<Self, String> {
        probe(&place.root())?;
        Ok(Self { shown: place.shown()?, names: listing(&place.dir) })
    }
}

/// A command with the folder that it finds, and what must be before and after it.
pub struct Case {
    pub command: Command,
    pub start: World,
    pub before: Shown,
    pub after: Shown,
    pub later: Later,
}

impl Case {
    pub fn new(command: Command, start: &Built) -> Self {
        let start = World::of(start.path()).0;
        let before = Place::new(Built::of(&start).path()).shown();
        let before = before.unwrap_or_else(|error| panic!("before {}: {error}", command.name));
        let built = Built::of(&start);
        let place = Place::new(built.path());
        (command.run)(&place).unwrap_or_else(|error| panic!("{}", say(command.name, &error)));
        let after = place.shown().unwrap_or_else(|error| panic!("after {}: {error}", command.name));
        let later = Later::of(&place).unwrap_or_else(|error| panic!("after {}: {error}", command.name));
        Self { command, start, before, after, later }
    }

    /// What must hold in a folder that was left by the command when it did not come to its end (or, with `done`, did):
    /// all is as before or as after, the command can be repeated, and no debris outlives the next commands.
    ///
    /// # Errors
    /// A sentence that says what is broken.
    pub fn judge(&self, dir: &Path, done: bool) -> std::result::Result<(), String> {
        let place = Place::new(dir);
        let seen = place.shown()?;
        if seen != self.after && (done || seen != self.before) {
            return Err(format!("between (done: {done}): {}", difference(&seen, &self.before, &self.after)));
        }
        if seen != self.after || self.before == self.after {
            (self.command.run)(&place).map_err(|error| say("again", &error))?;
        }
        let later = Later::of(&place)?;
        if later.shown != self.later.shown {
            return Err(format!("later: {}", difference(&later.shown, &self.later.shown, &self.later.shown)));
        }
        let (more, fewer) =
            (later.names.difference(&self.later.names), self.later.names.difference(&later.names));
        let (more, fewer): (Vec<_>, Vec<_>) = (more.collect(), fewer.collect());
        match more.is_empty() && fewer.is_empty() {
            true => Ok(()),
            false => Err(format!("debris: {more:?}, missing: {fewer:?}")),
        }
    }
}

fn difference(seen: &Shown, before: &Shown, after: &Shown) -> String {
    let lines = |shown: &Shown| -> Vec<String> { format!("{shown:#?}").lines().map(str::to_owned).collect() };
    let (seen, before, after) = (lines(seen), lines(before), lines(after));
    let without = |some: &[String], others: &[String]| {
        some.iter()
            .filter(|line| !others.contains(line))
            .map(|line| line.trim())
            .collect::<Vec<_>>()
            .join(" ")
    };
    format!(
        "not as before: {} (missing {}); not as after: {} (missing {})",
        without(&seen, &before),
        without(&before, &seen),
        without(&seen, &after),
        without(&after, &seen)
    )
}
