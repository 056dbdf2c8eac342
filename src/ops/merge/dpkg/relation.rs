//! What a package asks of others: the fields `Depends`, `Provides`, `Conflicts` and their like.

use super::version::compare;

/// One name in a relation: `name:qualifier (op version)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) name: &'a [u8],
    pub(super) qualifier: Option<&'a [u8]>,
    pub(super) version: Option<(Op, &'a [u8])>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Less,
    AtMost,
    Equal,
    AtLeast,
    Greater,
}

impl Op {
    pub(super) fn holds(self, left: &[u8], right: &[u8]) -> bool {
        let order = compare(left, right);
        match self {
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::Equal => order.is_eq(),
            Self::AtLeast => order.is_ge(),
            Self::Greater => order.is_gt(),
        }
    }
}

/// The parts of a field that are asked for together: what the commas divide.
pub(super) fn clauses(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    field.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|clause| !clause.is_empty())
}

/// The alternatives of one clause; nothing when one of them is malformed.
pub(super) fn alternatives(clause: &[u8]) -> Option<Vec<Named<'_>>> {
    clause.split(|&byte| byte == b'|').map(named).collect()
}

/// One name; nothing when it is malformed.
pub(super) fn named(text: &[u8]) -> Option<Named<'_>> {
    let text = text.trim_ascii();
    let end = text.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'(').unwrap_or(text.len());
    let (full, rest) = (&text[..end], text[end..].trim_ascii());
    let colon = full.iter().position(|&byte| byte == b':');
    let (name, qualifier) = colon.map_or((full, None), |at| (&full[..at], Some(&full[at + 1..])));
    if name.is_empty() || qualifier.is_some_and(<[u8]>::is_empty) {
        return None;
    }
    if rest.is_empty() {
        return Some(Named { name, qualifier, version: None });
    }
    let inner = rest.strip_prefix(b"(")?.strip_suffix(b")")?.trim_ascii();
    let split = inner.iter().position(|byte| !b"<=>".contains(byte))?;
    let op = match &inner[..split] {
        b"<<" => Op::Less,
        b"<=" | b"<" => Op::AtMost,
        b"=" => Op::Equal,
        b">=" | b">" => Op::AtLeast,
        b">>" => Op::Greater,
        _ => return None,
    };
    let version = inner[split..].trim_ascii();
    (!version.is_empty()).then_some(Named { name, qualifier, version: Some((op, version)) })
}

#[cfg(test)]
mod tests {
    use super::{Named, Op, alternatives, clauses};

    #[test]
    fn a_relation_is_read_in_all_its_forms() {
        let field = b"a, b:any (>= 1:2-3) | c(<<4),\n d ( = 5 )";
        let read: Vec<Vec<Named<'_>>> = clauses(field).filter_map(alternatives).collect();
        let plain = |name| Named { name, qualifier: None, version: None };
        let expected = [
            vec![plain(&b"a"[..])],
            vec![
                Named { name: b"b", qualifier: Some(b"any"), version: Some((Op::AtLeast, b"1:2-3")) },
                Named { version: Some((Op::Less, b"4")), ..plain(b"c") },
            ],
            vec![Named { version: Some((Op::Equal, b"5")), ..plain(b"d") }],
        ];
        assert_eq!(read, expected);
        for wrong in [&b"(= 1)"[..], b"a:", b"a (1)", b"a (>= )", b"a (>= 1", b"a b", b"a | "] {
            assert_eq!(alternatives(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }
}
