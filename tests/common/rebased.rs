//! A small ext4 base of two versions, and a clone of the first one that changed things too.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

use super::cli::Shed;
use super::cli::store::{file_digest, name};
use super::ext::Image;
use cowshed::store::{Access, BaseRef, CloneOptions, Store};
use cowshed::units::GuestOffset;
use std::fs;
use std::path::Path;

/// Lines that both sides can change apart from each other.
pub const CONF: &str = "a\nb\nc\nd\ne\nf\ng\nh\n";

/// A base of two versions, and a clone of the first one that changed things too.
pub struct Case {
    pub shed: Shed,
    pub old: Image,
    pub new: Image,
    pub mine: Image,
}

pub fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

pub fn changed(ext: &Image, change: impl FnOnce(&Path)) {
    let mount = ext.mount(true);
    change(&mount.path(""));
}

pub fn copy(ext: &Image) -> Image {
    let copy = Image::new(16, &["-t", "ext4", "-b", "1024"]);
    fs::copy(ext.path(), copy.path()).unwrap();
    copy
}

/// A clone of `os@1`, whose content is `old`, that becomes `new` by writing what differs.
pub fn clone_with(shed: &Shed, clone: &str, old: &[u8], new: &[u8]) {
    let store = Store::open(&shed.root()).unwrap();
    store.create_clones(&BaseRef::exact(name("os"), 1), &[name(clone)], &CloneOptions::default()).unwrap();
    let open = store.open_clone(&name(clone), Access::Write).unwrap();
    for (number, (old, new)) in old.chunks(1024).zip(new.chunks(1024)).enumerate() {
        if old != new {
            open.disk.write(new, GuestOffset(number as u64 * 1024)).unwrap();
        }
    }
    open.close().unwrap();
}

impl Case {
    pub fn new() -> Self {
        Self::with(|_| {}, |_| {})
    }

    /// With more changes of the new base and of the clone.
    pub fn with(base: impl FnOnce(&Path), clone: impl FnOnce(&Path)) -> Self {
        Self::in_shed(Shed::new(), base, clone)
    }

    /// The same in a store that may be there already.
    pub fn in_shed(shed: Shed, base: impl FnOnce(&Path), clone: impl FnOnce(&Path)) -> Self {
        let old = Image::new(16, &["-t", "ext4", "-b", "1024"]);
        changed(&old, |dir| {
            write(dir, "etc/conf", CONF);
            write(dir, "etc/gone", "in the base\n");
            write(dir, "srv/tree/one", "1\n");
        });
        let (new, mine) = (copy(&old), copy(&old));
        changed(&new, |dir| {
            write(dir, "etc/conf", &CONF.replace('b', "B"));
            write(dir, "etc/added", "by the base\n");
            write(dir, "srv/tree/one", "11\n");
            fs::remove_file(dir.join("etc/gone")).unwrap();
            base(dir);
        });
        changed(&mine, |dir| {
            write(dir, "etc/conf", &CONF.replace('g', "G"));
            write(dir, "home/mine", "the clone's\n");
            fs::rename(dir.join("srv/tree"), dir.join("srv/moved")).unwrap();
            clone(dir);
        });
        let case = Self { shed, old, new, mine };
        case.import();
        case
    }

    fn import(&self) {
        let text = |image: &Image| image.path().into_os_string().into_string().unwrap();
        self.shed.ok(&["import", &text(&self.old), "--name", "os", "--format", "raw"]);
        self.shed.ok(&["import", &text(&self.new), "--update", "os", "--format", "raw"]);
        self.clone("web", &self.mine);
    }

    /// A clone of the first version with the content of `disk`.
    pub fn clone(&self, clone: &str, disk: &Image) {
        clone_with(&self.shed, clone, &fs::read(self.old.path()).unwrap(), &fs::read(disk.path()).unwrap());
    }

    /// All that a clone's disk holds.
    pub fn digest(&self, clone: &str) -> blake3::Hash {
        let open = Store::open(&self.shed.root()).unwrap().open_clone(&name(clone), Access::Read).unwrap();
        let mut bytes = vec![0xee; usize::try_from(open.disk.size()).unwrap()];
        open.disk.read(&mut bytes, GuestOffset(0)).unwrap();
        blake3::hash(&bytes)
    }

    /// The version of the base that a clone stands on.
    pub fn version(&self, clone: &str) -> u32 {
        Store::open(&self.shed.root()).unwrap().clone_named(&name(clone)).unwrap().base.version
    }

    pub fn tmp_is_empty(&self) -> bool {
        fs::read_dir(self.shed.root().join("tmp")).unwrap().next().is_none()
    }

    pub fn checkpoints(&self, clone: &str) -> usize {
        self.shed.json(&["checkpoints", clone])["checkpoints"].as_array().unwrap().len()
    }

    /// What files of `web` hold, by a mount of the kernel's.
    pub fn read(&self, paths: &[&str]) -> Vec<Option<String>> {
        self.read_of("web", paths)
    }

    /// What files of a clone hold, by a mount of the kernel's.
    pub fn read_of(&self, clone: &str, paths: &[&str]) -> Vec<Option<String>> {
        let out = Image::new(16, &["-t", "ext4", "-b", "1024"]);
        let file = out.path().into_os_string().into_string().unwrap();
        self.shed.ok(&["export", clone, &file, "--format", "raw", "--force"]);
        out.assert_clean(clone);
        let mount = out.mount(false);
        paths.iter().map(|path| fs::read_to_string(mount.path(path)).ok()).collect()
    }

    pub fn is_merged(&self) -> bool {
        let both = CONF.replace('b', "B").replace('g', "G");
        let read =
            self.read(&["etc/conf", "etc/added", "home/mine", "srv/moved/one", "etc/gone", "srv/tree/one"]);
        let expected =
            [Some(both.as_str()), Some("by the base\n"), Some("the clone's\n"), Some("11\n"), None, None];
        read.iter().map(Option::as_deref).eq(expected)
    }

    pub fn is_as_before(&self) -> bool {
        let read = self.read(&["etc/conf", "etc/added", "home/mine", "srv/moved/one", "etc/gone"]);
        let mine = CONF.replace('g', "G");
        let expected = [Some(mine.as_str()), None, Some("the clone's\n"), Some("1\n"), Some("in the base\n")];
        read.iter().map(Option::as_deref).eq(expected)
    }

    pub fn bases(&self) -> [blake3::Hash; 2] {
        ["1/disk.raw", "2/disk.qcow2"].map(|file| file_digest(&self.shed.root().join("bases/os").join(file)))
    }

    pub fn refused(&self, why: &str) {
        let said = self.shed.fails(1, &["rebase", "web", "--onto", "os@2"]);
        assert!(said.contains(why), "{said}");
        assert!(self.is_as_before());
        assert_eq!(self.checkpoints("web"), 0);
        assert!(self.tmp_is_empty());
    }
}
