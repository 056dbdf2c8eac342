//! Header extensions, read with bounds and written back.

use super::layout::{AUTOCLEAR_BITMAPS, RawBitmaps, RawExtension, RawIdentity, extension};
use super::{BackingName, Identity};
use crate::error::{Error, Result};
use crate::units::{HostOffset, MIB, index, length};

/// Version of the identity extension.
const IDENTITY_FORMAT: u32 = 1;
/// Most extensions of a header; QEMU writes five at most.
const MOST_EXTENSIONS: usize = 64;
/// Longest name of a base in the identity extension, in bytes.
const MAX_NAME: usize = 255;
/// Most bitmaps and largest bitmap directory, as QEMU has them.
const MAX_BITMAPS: u32 = 65535;
const MAX_DIRECTORY: u64 = 64 * MIB;

/// What the extensions of a header say.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) backing_format: Option<String>,
    pub(super) identity: Option<Identity>,
    pub(super) bitmaps: Option<(u32, HostOffset, u64)>,
    pub(super) encrypted: bool,
    pub(super) external_data: bool,
}

/// Reads the list of extensions in `area`, which begins behind the header. Unknown ones are passed over.
pub(super) fn parse_extensions(mut area: &[u8], autoclear: u64) -> Result<Extensions> {
    let mut found = Extensions::default();
    let mut seen = Vec::new();
    while area.len() >= RawExtension::SIZE {
        let head = RawExtension::decode(area);
        let len = index(u64::from(head.length));
        let body = area.get(RawExtension::SIZE..).and_then(|rest| rest.get(..len)).ok_or_else(|| {
            Error::corrupt(format!("header extension {:#010x} reaches out of its area", head.kind))
        })?;
        if head.kind == extension::END {
            return Ok(found);
        }
        if seen.len() >= MOST_EXTENSIONS {
            return Err(Error::corrupt(format!("the header has more than {MOST_EXTENSIONS} extensions")));
        }
        if seen.contains(&head.kind) {
            return Err(Error::corrupt(format!("header extension {:#010x} is there twice", head.kind)));
        }
        seen.push(head.kind);
        take(&mut found, head.kind, body, autoclear)?;
        area = area.get(RawExtension::SIZE + len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    Ok(found)
}

fn take(found: &mut Extensions, kind: u32, body: &[u8], autoclear: u64) -> Result<()> {
    match kind {
        extension::BACKING_FORMAT => {
            let name = std::str::from_utf8(body)
                .ok()
                .filter(|name| name.len() < 16 && name.bytes().all(|byte| byte.is_ascii_graphic()))
                .ok_or_else(|| Error::corrupt("the backing format extension is no name of a format"))?;
            found.backing_format = Some(name.to_owned());
        }
        extension::IDENTITY => found.identity = Some(parse_identity(body)?),
        extension::BITMAPS if autoclear & AUTOCLEAR_BITMAPS != 0 => {
            found.bitmaps = Some(parse_bitmaps(body)?)
        }
        extension::ENCRYPTION => found.encrypted = true,
        extension::DATA_FILE => found.external_data = true,
        _ => {}
    }
    Ok(())
}

fn parse_identity(body: &[u8]) -> Result<Identity> {
    let bad = || Error::corrupt("the extension that names the base is malformed");
    if body.len() < RawIdentity::SIZE {
        return Err(bad());
    }
    let raw = RawIdentity::decode(body);
    if raw.format != IDENTITY_FORMAT {
        return Err(Error::unsupported(format!(
            "the extension that names the base has format {}",
            raw.format
        )));
    }
    let name = &body[RawIdentity::SIZE..];
    if name.len() != index(u64::from(raw.name_length)) || name.is_empty() || name.len() > MAX_NAME {
        return Err(bad());
    }
    let name = std::str::from_utf8(name).map_err(|_| bad())?.to_owned();
    Ok(Identity { name, version: raw.base_version, digest: raw.digest })
}

fn parse_bitmaps(body: &[u8]) -> Result<(u32, HostOffset, u64)> {
    if body.len() != RawBitmaps::SIZE {
        return Err(Error::corrupt("the bitmaps extension has a wrong length"));
    }
    let raw = RawBitmaps::decode(body);
    if raw.count == 0 || raw.count > MAX_BITMAPS || raw.reserved != 0 || raw.directory_size > MAX_DIRECTORY {
        return Err(Error::corrupt("the bitmaps extension has values out of range"));
    }
    Ok((raw.count, HostOffset(raw.directory_offset), raw.directory_size))
}

/// The bytes of the extensions of a new image, the end mark included.
pub(super) fn encode_extensions(
    backing: Option<&BackingName>,
    identity: Option<&Identity>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(format) = backing.and_then(|backing| backing.format.as_deref()) {
        push(&mut bytes, extension::BACKING_FORMAT, format.as_bytes())?;
    }
    if let Some(identity) = identity {
        if identity.name.is_empty() || identity.name.len() > MAX_NAME {
            return Err(Error::invalid(format!("a base's name has 1 to {MAX_NAME} bytes")));
        }
        let raw = RawIdentity {
            format: IDENTITY_FORMAT,
            base_version: identity.version,
            digest: identity.digest,
            name_length: u32_len(identity.name.len())?,
        };
        push(&mut bytes, extension::IDENTITY, &[&raw.encode()[..], identity.name.as_bytes()].concat())?;
    }
    push(&mut bytes, extension::END, &[])?;
    Ok(bytes)
}

fn push(bytes: &mut Vec<u8>, kind: u32, body: &[u8]) -> Result<()> {
    bytes.extend(RawExtension { kind, length: u32_len(body.len())? }.encode());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    Ok(())
}

pub(super) fn u32_len(len: usize) -> Result<u32> {
    u32::try_from(length(len)).map_err(|_| Error::invalid("a name or table is longer than 4 GiB"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn identity_and_format_come_back_as_written() {
        let identity = Identity { name: "ubuntu".into(), version: 7, digest: [3; 32] };
        let backing = BackingName { file: "x".into(), format: Some("raw".into()) };
        let bytes = encode_extensions(Some(&backing), Some(&identity)).unwrap();
        let found = parse_extensions(&bytes, 0).unwrap();
        assert_eq!(found.identity, Some(identity));
        assert_eq!(found.backing_format.as_deref(), Some("raw"));
    }

    #[test]
    fn an_extension_that_is_there_twice_or_too_long_is_refused() {
        let once =
            encode_extensions(Some(&BackingName { file: "x".into(), format: Some("raw".into()) }), None)
                .unwrap();
        let twice = [&once[..once.len() - 8], &once[..]].concat();
        assert!(parse_extensions(&twice, 0).is_err());
        assert!(parse_extensions(&once[..10], 0).is_err());
    }
}
