//! The manifests: small JSON files, one beside each disk, parsed strictly.

use super::digest::Digest;
use super::types::{BaseId, Canary, DiskFormat, Operation, Strategy};
use crate::error::{Error, Kind, Result};
use crate::qcow2::Identity;
use crate::storage::{Fingerprint, Folder};
use crate::units::{KIB, MIB, SECTOR};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

/// The version of all manifests and of the store's layout.
pub(super) const FORMAT: u32 = 1;
/// No manifest is longer, but those with rules.
pub(super) const MANIFEST_MAX: u64 = 64 * KIB;
/// Longest rules that are kept, in bytes: a rules file is no longer.
const RULES_MAX: usize = 1 << 20;
/// Longest manifest with rules, which are longer in JSON than they are.
const WITH_RULES_MAX: u64 = 8 * MIB;
/// Longest note, label or source, in bytes.
const TEXT_MAX: usize = 4096;
/// The largest disk that is taken in bytes: the longest file of ext4. It bounds the file of block sums to 1 GiB.
pub(crate) const DISK_MAX: u64 = 16 << 40;

/// `cowshed.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreManifest {
    pub(super) format: u32,
}

/// `base.json`. The folder says name and version.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseManifest {
    pub(super) manifest: u32,
    pub(super) format: DiskFormat,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) parent: Option<u32>,
    pub(super) source: String,
    pub(super) created: String,
    pub(super) fingerprint: Fingerprint,
    /// BLAKE3 of `blocks.crc`.
    pub(super) crc_digest: Digest,
}

/// `clone.json`. The folder says the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CloneManifest {
    pub(super) manifest: u32,
    pub(super) base: BaseId,
    /// Set while the clone's disk becomes one on another base, or of another size: the header of the disk says which of
    /// the two holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<BaseId>,
    pub(super) size: u64,
    pub(super) compat: bool,
    pub(super) created: String,
    pub(super) labels: BTreeMap<String, String>,
}

/// `checkpoint-N.json`. The file's name says the number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckpointManifest {
    pub(super) manifest: u32,
    pub(super) parent: Option<u32>,
    /// What the lowest of its layers stands on: not always what the clone stands on now.
    pub(super) base: BaseId,
    pub(super) note: Option<String>,
    /// The operation that made it, to be undone by going back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Operation>,
    pub(super) created: String,
    /// Without ctime: the file has got its name and lost its other one since.
    pub(super) fingerprint: Fingerprint,
    /// Set while another layer takes its data over: the header of that layer says whether it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) folding: Option<Folding>,
}

/// Which layer takes the data of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Folding {
    /// The number of the checkpoint that stands on it; `None` for the active layer.
    pub(super) into: Option<u32>,
    /// What that one's file is afterwards, without ctime.
    pub(super) fingerprint: Fingerprint,
}

/// `rebase.json`: a rebase that waits for the next start of its clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitingManifest {
    pub(super) manifest: u32,
    /// What the clone stood on: it waits no more once it stands on anything else.
    pub(super) from: BaseId,
    pub(super) onto: BaseId,
    pub(super) strategy: Strategy,
    /// The user's rules, as they were written.
    pub(super) rules: String,
    pub(super) created: String,
}

/// `canary.json`: what the last canary run of a base was told to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CanaryManifest {
    pub(super) manifest: u32,
    pub(super) run: Canary,
    pub(super) created: String,
}

/// What a manifest must hold beyond its types.
pub(super) trait Valid: DeserializeOwned + Serialize {
    /// Bytes that one has at most.
    const MAX: u64 = MANIFEST_MAX;

    /// Why it cannot be right.
    fn fault(&self) -> Option<&'static str>;
}

impl CloneManifest {
    /// Decides which base and which size hold while another disk comes in the place: those that its header names.
    pub(super) fn settle(&mut self, header: Option<&Identity>, size: u64) {
        if let Some(next) = self.next.take()
            && header.is_some_and(|header| next.is(header))
        {
            self.base = next;
            self.size = size;
        }
    }
}

impl Valid for BaseManifest {
    fn fault(&self) -> Option<&'static str> {
        size_fault(self.size).or(text_fault([&self.source, &self.created])).or_else(|| {
            (self.format == DiskFormat::Raw && self.parent.is_some()).then_some("a raw base has no parent")
        })
    }
}

impl Valid for CloneManifest {
    fn fault(&self) -> Option<&'static str> {
        size_fault(self.size)
            .or(text_fault(self.labels.iter().flat_map(|(key, value)| [key, value]).chain([&self.created])))
    }
}

impl Valid for CheckpointManifest {
    fn fault(&self) -> Option<&'static str> {
        text_fault(self.note.iter().chain([&self.created]))
    }
}

impl Valid for WaitingManifest {
    const MAX: u64 = WITH_RULES_MAX;

    fn fault(&self) -> Option<&'static str> {
        rules_fault(&self.rules).or(text_fault([&self.created]))
    }
}

impl Valid for CanaryManifest {
    const MAX: u64 = WITH_RULES_MAX;

    fn fault(&self) -> Option<&'static str> {
        let texts = self.run.only.iter().chain(&self.run.keep_disks).chain([&self.created]);
        rules_fault(&self.run.rules).or(text_fault(texts))
    }
}

fn rules_fault(rules: &str) -> Option<&'static str> {
    (rules.len() > RULES_MAX).then_some("its rules have more than 1 MiB")
}

fn size_fault(size: u64) -> Option<&'static str> {
    let good = (SECTOR..=DISK_MAX).contains(&size) && size.is_multiple_of(SECTOR);
    (!good).then_some("the disk's size is not a positive multiple of 512 bytes up to 16 TiB")
}

/// Text goes to terminals: no control characters, and not much of it.
pub(super) fn text_fault<'a>(texts: impl IntoIterator<Item = &'a String>) -> Option<&'static str> {
    let bad = |text: &String| text.len() > TEXT_MAX || text.chars().any(char::is_control);
    texts.into_iter().any(bad).then_some("a text has control characters or more than 4096 bytes")
}

/// `text` so that [`text_fault`] finds nothing wrong: escaped and cut.
pub(super) fn tame(text: &str) -> String {
    let escaped: String = text
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    let end = (0..=TEXT_MAX.min(escaped.len())).rev().find(|at| escaped.is_char_boundary(*at)).unwrap_or(0);
    escaped[..end].to_owned()
}

/// Reads the manifest at `file` below `folder`; `None` when there is none.
pub(super) fn load<T: Valid>(folder: &Folder, file: &str) -> Result<Option<T>> {
    let place = || folder.path().join(file).display().to_string();
    let bytes = match folder.read_small(file, T::MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(Error::corrupt(format!("{}: {error}", place())));
        }
        Err(error) => return Err(Error::io(format!("cannot read {}", place()), error)),
    };
    parse(&bytes).map(Some).map_err(|error| error.at(place()))
}

/// Parses a manifest.
pub(super) fn parse<T: Valid>(bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        manifest: u32,
    }
    let broken =
        |error: serde_json::Error| Error::corrupt(format!("not a manifest: {}", tame(&error.to_string())));
    let Version { manifest } = serde_json::from_slice(bytes).map_err(broken)?;
    if manifest != FORMAT {
        return Err(Error::new(
            Kind::Unsupported,
            format!("manifest format {manifest}, this cowshed knows {FORMAT}; use a later one"),
        ));
    }
    let value: T = serde_json::from_slice(bytes).map_err(broken)?;
    match value.fault() {
        Some(fault) => Err(Error::corrupt(fault)),
        None => Ok(value),
    }
}

/// The bytes of a manifest.
pub(super) fn bytes<T: Valid>(manifest: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Error::invalid(format!("this cannot be written as JSON: {error}")))?;
    bytes.push(b'\n');
    let len = crate::units::length(bytes.len());
    if T::MAX == MANIFEST_MAX && len > MANIFEST_MAX {
        return Err(Error::invalid("the labels are too long: at most 64 KiB in all"));
    }
    if len > T::MAX {
        return Err(Error::invalid("the rules and names are too long: at most 8 MiB in all"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> serde_json::Value {
        let digest = "00".repeat(32);
        serde_json::json!({
            "manifest": 1, "base": {"name": "a", "version": 1, "digest": digest}, "size": 512, "compat": false,
            "created": "2026-01-01T00:00:00Z", "labels": {}
        })
    }

    #[test]
    fn hostile_manifests_end_in_a_sentence() {
        assert!(parse::<CloneManifest>(sample().to_string().as_bytes()).is_ok());
        type Change = fn(&mut serde_json::Value);
        let changes: [(Kind, Change); 9] = [
            (Kind::Unsupported, |v| v["manifest"] = 2.into()),
            (Kind::Corrupt, |v| v["manifest"] = "x".into()),
            (Kind::Corrupt, |v| v["extra"] = 1.into()),
            (Kind::Corrupt, |v| v["size"] = 513.into()),
            (Kind::Corrupt, |v| v["size"] = u64::MAX.into()),
            (Kind::Corrupt, |v| v["base"]["name"] = "../x".into()),
            (Kind::Corrupt, |v| v["base"]["digest"] = "00".into()),
            (Kind::Corrupt, |v| v["base"]["version"] = (-1).into()),
            (Kind::Corrupt, |v| v["labels"]["\u{1b}[2J"] = "x".into()),
        ];
        for (kind, change) in changes {
            let mut value = sample();
            change(&mut value);
            let error = parse::<CloneManifest>(value.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.kind(), kind, "{value}: {error}");
            assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
        }
        for junk in ["", "[]", "{", "\"\"", &"[".repeat(60000)] {
            assert_eq!(parse::<CloneManifest>(junk.as_bytes()).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn tamed_text_is_accepted() {
        let text = format!("a\n\u{1b}{}é", "é".repeat(4000));
        assert_eq!(text_fault([&tame(&text)]), None);
        assert_eq!(tame("plain/päth"), "plain/päth");
    }
}
