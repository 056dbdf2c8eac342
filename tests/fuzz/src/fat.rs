//! FAT and swap: what is read lies inside the disk, and a filesystem that is taken can be changed and is in order then.

use super::ext4::decode;
use super::is_sentence;
use cowshed::guestfs::edit::Volume;
use cowshed::guestfs::fat::{ATTRIBUTES, Content, Fat, Stamps, Supply, Target, Tree, Wanted, rewrite};
use cowshed::guestfs::partitions::Bytes;
use cowshed::guestfs::swap::Swap;
use cowshed::units::GuestOffset;
use std::cell::{Cell, RefCell};

/// Most reads and writes that all of this takes.
const TURNS: u64 = 1_000_000;

struct Disk {
    bytes: RefCell<Vec<u8>>,
    turns: Cell<u64>,
}

impl Disk {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RefCell::new(bytes), turns: Cell::new(0) }
    }

    fn range(&self, at: GuestOffset, len: usize) -> std::ops::Range<usize> {
        self.turns.set(self.turns.get() + 1);
        assert!(self.turns.get() < TURNS, "more than {TURNS} reads and writes");
        let at = usize::try_from(at.0).unwrap();
        assert!(
            at.checked_add(len).unwrap() <= self.bytes.borrow().len(),
            "a range past the end of the disk"
        );
        at..at + len
    }
}

impl Bytes for Disk {
    fn size(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn read(&self, buf: &mut [u8], at: GuestOffset) -> cowshed::Result<()> {
        buf.copy_from_slice(&self.bytes.borrow()[self.range(at, buf.len())]);
        Ok(())
    }
}

impl Volume for Disk {
    fn write(&self, data: &[u8], at: GuestOffset) -> cowshed::Result<()> {
        let range = self.range(at, data.len());
        self.bytes.borrow_mut()[range].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> cowshed::Result<()> {
        Ok(())
    }
}

struct Sevens;

impl Supply for Sevens {
    fn fill(&self, _: usize, _: u64, buf: &mut [u8]) -> cowshed::Result<()> {
        buf.fill(7);
        Ok(())
    }
}

/// The first byte says what is changed, the second how long the disk is; then come pieces, as those of `ext4`.
pub fn fat(data: &[u8]) {
    let [change, size, pieces @ ..] = data else { return };
    let mut bytes = vec![0; (usize::from(*size) % 64 + 1) << 16];
    decode(pieces, &mut bytes);
    let disk = Disk::new(bytes);
    if let Some(swap) = answer(Swap::find(&disk)).flatten() {
        assert!(!swap.fits(0), "a swap space of nothing");
    }
    let Some(fat) = answer(Fat::open(&disk)) else { return };
    let Some(tree) = answer(fat.tree()) else { return };
    look(&fat, &tree);
    let other = Disk::new(disk.bytes.borrow().clone());
    let changed = rewrite(&other, &fat, &tree, &target(&tree, *change), &Sevens);
    if let Err(error) = changed {
        is_sentence(&error.to_string());
        let names = error.to_string();
        let known = ["no room", "no more names", "would be named"].iter().any(|words| names.contains(words));
        assert!(known, "what was taken cannot be changed: {names}");
    }
}

fn answer<T>(result: cowshed::Result<T>) -> Option<T> {
    result.inspect_err(|error| is_sentence(&error.to_string())).ok()
}

fn look(fat: &Fat<&Disk>, tree: &Tree) {
    assert!(tree.items[0].is_folder && !tree.items.is_empty());
    let mut all = 0;
    for (number, item) in tree.items.iter().enumerate().skip(1) {
        assert!(item.folder < number && tree.items[item.folder].is_folder, "{item:?}");
        assert!(
            (1..=255).contains(&item.name.encode_utf16().count()) && !item.name.contains('/'),
            "{item:?}"
        );
        assert!(!item.is_folder || item.size == 0);
        all += u64::from(item.size);
        let mut bytes = vec![0; item.size as usize];
        fat.read(item, 0, &mut bytes).unwrap();
        assert!(fat.read(item, 1, &mut bytes).is_err() || bytes.is_empty());
    }
    assert!(all <= 4 << 20, "{all} bytes in files of a small disk");
}

/// All but what `change` leaves out, with a file more.
fn target(tree: &Tree, change: u8) -> Target {
    let mut target = Target::default();
    let mut numbers = vec![None; tree.items.len()];
    for (number, item) in tree.items.iter().enumerate() {
        let left_out = number > 0 && (number + usize::from(change)).is_multiple_of(3);
        let Some(folder) = numbers[item.folder].or((number == 0).then_some(0)).filter(|_| !left_out) else {
            continue;
        };
        let new = change & 0x80 != 0 && !item.is_folder && number.is_multiple_of(2);
        numbers[number] = Some(target.items.len());
        target.items.push(Wanted {
            name: item.name.clone(),
            folder,
            is_folder: item.is_folder,
            old: Some(number),
            attributes: item.attributes & ATTRIBUTES,
            stamps: item.stamps,
            content: if new { Content::New(u32::from(change) * 7) } else { Content::Kept },
        });
    }
    let name = "a file that nobody else has".to_owned();
    let known = tree.items[0].children.len();
    target.items.push(Wanted {
        name: format!("{name} {known}"),
        folder: 0,
        is_folder: false,
        old: None,
        attributes: 0,
        stamps: Stamps::default(),
        content: Content::New(1000),
    });
    target
}
