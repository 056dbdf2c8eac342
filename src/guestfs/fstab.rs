//! What a Linux guest mounts where: `/etc/fstab` (fstab(5)).

/// Most lines that count: more are no table of a machine.
const MOST: usize = 256;
/// The first disk, as Linux names it on each kind of bus; `p` goes before the number of a partition when the name ends
/// with a digit.
const FIRST_DISKS: [&str; 6] = ["sda", "vda", "hda", "xvda", "nvme0n1", "mmcblk0"];

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device, or the file of a swap space.
    pub device: Vec<u8>,
    /// Where it is mounted: absolute, without a slash at its end, so empty for `/`; none for swap.
    pub at: Option<Vec<u8>>,
    /// Whether it is swap.
    pub is_swap: bool,
}

/// What a guest may call a partition, or the whole disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its number; 0 for the whole disk.
    pub number: u32,
    /// The filesystem's UUID or serial number, as blkid writes it; empty when it has none, as all others.
    pub uuid: String,
    /// The filesystem's label.
    pub label: Vec<u8>,
    /// The partition's own UUID.
    pub part_uuid: String,
    /// The partition's own name.
    pub part_label: String,
}

/// The lines of a table, but for comments and those that break the format.
#[must_use]
pub fn mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(mount).take(MOST).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|field| !field.is_empty());
    let device = fields.next().filter(|device| !device.starts_with(b"#"))?;
    let (at, kind) = (unescaped(fields.next()?), fields.next()?);
    let is_swap = kind == b"swap";
    let is_path = at.starts_with(b"/") && !at.split(|byte| *byte == b'/').any(|part| part == b"..");
    let at = is_path.then(|| clean(&at));
    (is_swap || at.is_some()).then(|| Mount { device: unescaped(device), at, is_swap })
}

/// A path with single slashes between its parts and none at its end.
fn clean(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.fold(Vec::new(), |path, part| [&path[..], b"/", part].concat())
}

/// Blanks stand in a field as `\040` and the like.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |code, digit| match digit {
        b'0'..=b'7' => code.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

impl Names {
    /// Whether `device` of a line means it.
    #[must_use]
    pub fn answer_to(&self, device: &[u8]) -> bool {
        let value = |tag: &str| {
            let tagged = device.strip_prefix(format!("{tag}=").as_bytes()).map(unquoted);
            let folder = format!("/dev/disk/by-{}/", tag.to_ascii_lowercase());
            tagged.or_else(|| device.strip_prefix(folder.as_bytes()))
        };
        let is = |name: &[u8], tag: &str| !name.is_empty() && value(tag) == Some(name);
        // The same number is written in capitals here and in small letters there.
        let is_number = |name: &str, tag: &str| {
            !name.is_empty() && value(tag).is_some_and(|value| value.eq_ignore_ascii_case(name.as_bytes()))
        };
        is_number(&self.uuid, "UUID")
            || is_number(&self.part_uuid, "PARTUUID")
            || is(&self.label, "LABEL")
            || is(self.part_label.as_bytes(), "PARTLABEL")
            || self.is_device(device)
    }

    fn is_device(&self, device: &[u8]) -> bool {
        FIRST_DISKS.iter().any(|disk| {
            let between = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
            let name = match self.number {
                0 => format!("/dev/{disk}"),
                number => format!("/dev/{disk}{between}{number}"),
            };
            name.as_bytes() == device
        })
    }
}

/// A value may stand in quotes.
fn unquoted(value: &[u8]) -> &[u8] {
    let inner = value.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\""));
    inner.unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::{Names, mounts};

    #[test]
    fn lines_are_read_as_mount_reads_them() {
        let text = b"# <file system> <mount point>\n\
            UUID=1-2 / ext4 errors=remount-ro 0 1\n\
            \tLABEL=data\t/srv/my\\040data//\text4\n\
            /swapfile none swap sw 0 0\n\
            /dev/vda5 /old/../etc ext4\n\
            proc\n\
            tmpfs relative tmpfs\n\
            /dev/sr0 /media/. udf,iso9660 user,noauto";
        let found: Vec<_> = mounts(text)
            .into_iter()
            .map(|mount| (String::from_utf8(mount.device), mount.at.map(String::from_utf8), mount.is_swap))
            .collect();
        let line = |device: &str, at: Option<&str>, is_swap| {
            (Ok(device.to_owned()), at.map(|at| Ok(at.to_owned())), is_swap)
        };
        let expected = vec![
            line("UUID=1-2", Some(""), false),
            line("LABEL=data", Some("/srv/my data"), false),
            line("/swapfile", None, true),
            line("/dev/sr0", Some("/media"), false),
        ];
        assert_eq!(found, expected);
        assert_eq!(mounts(&b"/x /y ext4\n".repeat(1000)).len(), 256);
        assert!(mounts(&[0xff; 100]).is_empty() && mounts(b"").is_empty());
    }

    #[test]
    fn a_partition_answers_to_what_linux_calls_it_and_to_nothing_else() {
        let names = Names {
            number: 2,
            uuid: "aabb-CC".to_owned(),
            label: b"root fs".to_vec(),
            part_uuid: "11-22".to_owned(),
            part_label: "system".to_owned(),
        };
        for device in [
            "UUID=AABB-cc",
            "UUID=\"aabb-cc\"",
            "LABEL=root fs",
            "PARTUUID=11-22",
            "PARTLABEL=system",
            "/dev/disk/by-uuid/aabb-cc",
            "/dev/disk/by-partlabel/system",
            "/dev/vda2",
            "/dev/sda2",
            "/dev/nvme0n1p2",
        ] {
            assert!(names.answer_to(device.as_bytes()), "{device}");
        }
        for device in [
            "UUID=11-22",
            "UUID=",
            "LABEL=root",
            "LABEL=ROOT FS",
            "/dev/vdb2",
            "/dev/vda",
            "/dev/vda22",
            "/dev/nvme0n12",
            "",
        ] {
            assert!(!names.answer_to(device.as_bytes()), "{device}");
        }
        let whole = Names::default();
        assert!(whole.answer_to(b"/dev/vda") && !whole.answer_to(b"UUID=") && !whole.answer_to(b"LABEL="));
    }
}
