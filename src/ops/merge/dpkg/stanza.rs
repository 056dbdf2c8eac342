//! Files of stanzas (RFC 822 style, as dpkg, apt and debconf write them): strict, and without losing a byte.

use crate::error::{Error, Result};
use std::collections::HashSet;

/// Longest file of stanzas, in bytes.
pub(in super::super) const FILE_MAX: usize = 64 << 20;
/// Most stanzas in a file.
const STANZAS_MAX: usize = 200_000;

/// One stanza: its own bytes, and where its fields are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stanza<'a> {
    /// With the line feed of its last line, without the empty line behind it.
    pub bytes: &'a [u8],
    fields: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Stanza<'a> {
    /// A field's value without the blanks around it; the lines that continue it are as they are.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        let found = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value.trim_ascii())
    }
}

/// The stanzas of a file.
///
/// # Errors
/// `Corrupt` names the line that is neither a field nor the continuation of one, a field that comes twice, or a
/// last line that is cut; `Unsupported` says that a file is longer than 64 MiB or has more than 200000 stanzas.
pub fn parse(file: &[u8]) -> Result<Vec<Stanza<'_>>> {
    if file.len() > FILE_MAX {
        return Err(Error::unsupported("it is longer than 64 MiB"));
    }
    if !file.is_empty() && !file.ends_with(b"\n") {
        return Err(Error::corrupt("its last line is cut"));
    }
    let mut stanzas = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut fields = Fields::default();
    for (number, line) in file.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() && !matches!(line.first(), Some(b' ' | b'\t')) {
            finish(&mut stanzas, &file[start..at], &mut fields)?;
            start = at + line.len();
        } else {
            fields
                .line(file, at, line)
                .map_err(|reason| Error::corrupt(format!("line {}: {reason}", number + 1)))?;
        }
        at += line.len();
    }
    finish(&mut stanzas, &file[start..], &mut fields)?;
    Ok(stanzas)
}

fn finish<'a>(stanzas: &mut Vec<Stanza<'a>>, bytes: &'a [u8], fields: &mut Fields<'a>) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    if stanzas.len() == STANZAS_MAX {
        return Err(Error::unsupported(format!("it has more than {STANZAS_MAX} stanzas")));
    }
    stanzas.push(Stanza { bytes, fields: std::mem::take(fields).found });
    Ok(())
}

/// The fields of the stanza that is being read.
#[derive(Default)]
struct Fields<'a> {
    found: Vec<(&'a [u8], &'a [u8])>,
    names: HashSet<Vec<u8>>,
    /// Where the last field's value begins.
    value: usize,
}

impl<'a> Fields<'a> {
    fn line(&mut self, file: &'a [u8], at: usize, line: &'a [u8]) -> Result<(), &'static str> {
        let end = at + line.len();
        if matches!(line.first(), Some(b' ' | b'\t')) {
            let last = self.found.last_mut().ok_or("a continuation of nothing")?;
            last.1 = &file[self.value..end];
            return Ok(());
        }
        let colon =
            line.iter().position(|&byte| byte == b':').ok_or("no field and no continuation of one")?;
        let name = &line[..colon];
        if name.is_empty() || name[0] == b'-' || !name.iter().all(u8::is_ascii_graphic) {
            return Err("a field's name that is none");
        }
        if !self.names.insert(name.to_ascii_lowercase()) {
            return Err("a field that its stanza has already");
        }
        self.value = at + colon + 1;
        self.found.push((name, &file[self.value..end]));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn stanzas_keep_their_bytes_and_their_fields() {
        let file = b"Package: a\nDescription: short\n long\n .\n more\n\n\nPackage: b\nVersion:1\n";
        let stanzas = parse(file).expect("sound");
        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0].get("description"), Some(&b"short\n long\n .\n more"[..]));
        assert_eq!(stanzas[1].bytes, b"Package: b\nVersion:1\n");
        assert_eq!((stanzas[1].get("Version"), stanzas[1].get("x")), (Some(&b"1"[..]), None));
        assert_eq!(parse(b"").expect("empty"), []);
    }

    #[test]
    fn what_is_no_stanza_is_refused_with_its_line() {
        let said = |file: &[u8]| parse(file).expect_err("refused").to_string();
        assert_eq!(said(b"a: 1\nb\n"), "line 2: no field and no continuation of one");
        assert_eq!(said(b" a\n"), "line 1: a continuation of nothing");
        assert_eq!(said(b"a: 1\nA: 2\n"), "line 2: a field that its stanza has already");
        assert_eq!(said(b": 1\n"), "line 1: a field's name that is none");
        assert_eq!(said(b"a: 1"), "its last line is cut");
    }
}
