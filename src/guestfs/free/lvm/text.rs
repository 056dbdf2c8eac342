//! The text in which LVM2 keeps what it knows: sections in braces, `key = value` with numbers, strings and lists.

use crate::error::{Error, Result};

const DEEPEST: usize = 8;
/// Longest name, and how much of a text is said again, in letters.
const LONGEST: usize = 128;

/// A section: names in their order, each once.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Section(Vec<(String, Node)>);

#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Section(Section),
    Number(u64),
    Text(String),
    List(Vec<Node>),
}

/// What a text holds that breaks its format.
pub(super) fn wrong(what: impl std::fmt::Display) -> Error {
    let what: String = what.to_string().chars().take(LONGEST).collect();
    Error::corrupt(format!("the metadata of LVM2 is not what is known here: {what}; leave it as it is"))
}

impl Section {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn get(&self, name: &str) -> Option<&Node> {
        self.0.iter().find_map(|(key, node)| (key == name).then_some(node))
    }

    pub(super) fn number(&self, name: &str) -> Result<u64> {
        match self.get(name) {
            Some(Node::Number(number)) => Ok(*number),
            _ => Err(wrong(format_args!("{name} is no number"))),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<&str> {
        match self.get(name) {
            Some(Node::Text(text)) => Ok(text),
            _ => Err(wrong(format_args!("{name} is no text"))),
        }
    }

    /// A list; an empty one when it is missing.
    pub(super) fn list(&self, name: &str) -> Result<&[Node]> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Node::List(list)) => Ok(list),
            Some(_) => Err(wrong(format_args!("{name} is no list"))),
        }
    }

    /// The sections inside of this one, and nothing else; none when `name` is missing.
    pub(super) fn sections(&self, name: &str) -> Result<Vec<(&str, &Section)>> {
        let Some(node) = self.get(name) else { return Ok(Vec::new()) };
        let Node::Section(section) = node else { return Err(wrong(format_args!("{name} is no section"))) };
        let inner = section.0.iter().map(|(name, node)| match node {
            Node::Section(section) => Ok((name.as_str(), section)),
            _ => Err(wrong(format_args!("{name} is no section"))),
        });
        inner.collect()
    }

    /// The sections right inside of this one.
    pub(super) fn own_sections(&self) -> Vec<(&str, &Section)> {
        let sections = self.0.iter().filter_map(|(name, node)| match node {
            Node::Section(section) => Some((name.as_str(), section)),
            _ => None,
        });
        sections.collect()
    }
}

/// Reads a whole text.
pub(super) fn parse(text: &[u8]) -> Result<Section> {
    let mut parser = Parser { text, at: 0 };
    let section = parser.section(0)?;
    if parser.at < text.len() { Err(wrong("a section ends twice")) } else { Ok(section) }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    /// The next byte that is neither space nor comment; 0 at the end.
    fn peek(&mut self) -> u8 {
        while let Some(byte) = self.text.get(self.at) {
            match byte {
                b'#' => self.skip(|byte| byte != b'\n'),
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                byte => return *byte,
            }
        }
        0
    }

    fn skip(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.text.get(self.at).is_some_and(|byte| wanted(*byte)) {
            self.at += 1;
        }
    }

    fn eat(&mut self, wanted: u8) -> Result<()> {
        if self.peek() != wanted {
            return Err(wrong(format_args!("there is no {:?} at byte {}", char::from(wanted), self.at)));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self) -> Result<String> {
        let start = self.at;
        self.skip(|byte| byte.is_ascii_alphanumeric() || b"_-.+".contains(&byte));
        let word = self.text.get(start..self.at).filter(|word| (1..=LONGEST).contains(&word.len()));
        let word = word.and_then(|word| String::from_utf8(word.to_vec()).ok());
        word.ok_or_else(|| wrong(format_args!("there is no name at byte {start}")))
    }

    /// What stands up to a closing brace, which is left, or to the end of the text.
    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > DEEPEST {
            return Err(wrong("its sections are too deep"));
        }
        let mut section = Section::default();
        let mut names = std::collections::BTreeSet::new();
        while !matches!(self.peek(), 0 | b'}') {
            let name = self.word()?;
            let node = match self.peek() {
                b'{' => {
                    self.at += 1;
                    let inner = self.section(depth + 1)?;
                    self.eat(b'}')?;
                    Node::Section(inner)
                }
                _ => {
                    self.eat(b'=')?;
                    self.value(depth)?
                }
            };
            if !names.insert(name.clone()) {
                return Err(wrong(format_args!("{name} is there twice")));
            }
            section.0.push((name, node));
        }
        Ok(section)
    }

    fn value(&mut self, depth: usize) -> Result<Node> {
        match self.peek() {
            b'"' => self.string().map(Node::Text),
            b'[' if depth <= DEEPEST => {
                self.at += 1;
                let mut list = Vec::new();
                while self.peek() != b']' {
                    list.push(self.value(depth + 1)?);
                    if self.peek() != b']' {
                        self.eat(b',')?;
                    }
                }
                self.at += 1;
                Ok(Node::List(list))
            }
            _ => {
                let word = self.word()?;
                let number = word.parse().ok().filter(|_| word.bytes().all(|byte| byte.is_ascii_digit()));
                number.map(Node::Number).ok_or_else(|| wrong(format_args!("{word} is no number")))
            }
        }
    }

    fn string(&mut self) -> Result<String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.text.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    self.at += 1;
                    bytes.extend(self.text.get(self.at));
                }
                Some(byte) => bytes.push(*byte),
                None => return Err(wrong("a text does not end")),
            }
            self.at += 1;
        }
        self.at += 1;
        // It may be said again, to a terminal.
        let text = String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control));
        text.ok_or_else(|| wrong("a text is not UTF-8, or has control characters"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_with_all_that_may_stand_in_it() {
        let text =
            b"# c }\nvg {\nid = \"a\\\"b\"\nseqno = 7 # x\nstatus = [\"READ\", \"WRITE\"]\nflags = []\n\
            inner { stripes = [\n\"pv0\", 12\n]\n}\n}\nversion = 1";
        let whole = parse(text).expect("a good text");
        let [(name, vg)] = whole.own_sections()[..] else { panic!("{whole:?}") };
        assert_eq!((name, vg.text("id").ok(), vg.number("seqno").ok()), ("vg", Some("a\"b"), Some(7)));
        let words = ["READ", "WRITE"].map(|word| Node::Text(word.to_owned()));
        assert_eq!(vg.list("status").expect("a list"), words);
        assert!(vg.list("flags").is_ok_and(<[_]>::is_empty) && vg.list("none").is_ok_and(<[_]>::is_empty));
        let stripes = vg.own_sections()[0].1.list("stripes").expect("a list");
        assert_eq!(stripes, [Node::Text("pv0".into()), Node::Number(12)]);
        assert_eq!(whole.names().collect::<Vec<_>>(), ["vg", "version"]);
    }

    #[test]
    fn what_breaks_the_format_is_refused_in_a_sentence() {
        let deep = "a {".repeat(1000);
        let lists = format!("a = {}", "[".repeat(100_000));
        for text in [
            "a",
            "a =",
            "a = -1",
            "a = 1.5",
            "a = [1",
            "a = [1 2]",
            "a = \"x",
            "a = \"\\",
            "a {",
            "}",
            "a { } }",
            "= 1",
            "a = 1\na = 2",
            "a = 99999999999999999999",
            "a = +1",
            &deep,
            &lists,
            "a = \"\u{7f}\"",
            &format!("{} = 1", "a".repeat(129)),
        ] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(error.to_string().contains("not what is known here"), "{error}");
        }
    }
}
