//! A disk of the view: readers that move over to the writer's instance, writers that come and go, and the thread that
//! flushes what is left alone.

use crate::explore;
use crate::store::TempStore;
use cowshed::view::View;
use fuse_mount::{Device, Opener, Source};
use std::fs;
use std::sync::{Arc, OnceLock};

const SECTOR: usize = 512;

/// A store with one clone, and the clone's file as it was made.
struct Shelf {
    temp: TempStore,
    fresh: Vec<u8>,
    base: Vec<u8>,
}

impl Shelf {
    fn new() -> Self {
        // The import's jobs stay on this thread.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap();
        let (temp, _) = pool.install(|| TempStore::with_base(1 << 20));
        temp.clones(&["web"]);
        let fresh = fs::read(temp.clone_folder("web").join("disk.qcow2")).unwrap();
        let base = temp.clone_content("web");
        Self { temp, fresh, base }
    }

    /// A view of the clone as it was made.
    fn view(&self) -> View {
        fs::write(self.temp.clone_folder("web").join("disk.qcow2"), &self.fresh).unwrap();
        View::new(self.temp.store.clone()).unwrap()
    }
}

fn open(view: &View, write: bool) -> Arc<dyn Device> {
    view.open("clones", "web.raw", Opener { write, pid: 7, uid: 0 }).unwrap()
}

fn read(device: &dyn Device, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0xee; SECTOR];
    assert_eq!(device.read(&mut bytes, (sector * SECTOR) as u64).unwrap(), SECTOR);
    bytes
}

fn write(device: &dyn Device, sector: usize, byte: u8) {
    assert_eq!(device.write(&[byte; SECTOR], (sector * SECTOR) as u64).unwrap(), SECTOR);
}

#[test]
fn readers_and_writers_that_come_and_go_see_one_disk_and_lose_nothing() {
    explore("users of a disk", || {
        // Made by the first schedule: the engine runs nowhere else here.
        static SHELF: OnceLock<Shelf> = OnceLock::new();
        let shelf = SHELF.get_or_init(Shelf::new);
        let view = shelf.view();
        shuttle::thread::scope(|scope| {
            let view = &view;
            scope.spawn(move || {
                let device = open(view, true);
                write(&*device, 0, 1);
                assert_eq!(read(&*device, 0), [1; SECTOR]);
                device.flush().unwrap();
            });
            scope.spawn(move || {
                let device = open(view, true);
                write(&*device, 1, 2);
                assert_eq!(read(&*device, 1), [2; SECTOR]);
            });
            scope.spawn(move || {
                let device = open(view, false);
                for (sector, byte) in [(0, 1), (1, 2)] {
                    let (seen, old) = (read(&*device, sector), &shelf.base[sector * SECTOR..][..SECTOR]);
                    assert!(seen == [byte; SECTOR] || seen == old, "sector {sector}: {:02x?}", &seen[..4]);
                }
                assert_eq!(read(&*device, 2), shelf.base[2 * SECTOR..][..SECTOR]);
            });
        });
        drop(view);
        // Closed by the last writer: nothing is left to anybody's flush.
        let content = shelf.temp.clone_content("web");
        assert_eq!((content[0], content[SECTOR]), (1, 2));
        assert!(content[2 * SECTOR..] == shelf.base[2 * SECTOR..], "other sectors changed");
    });
}
