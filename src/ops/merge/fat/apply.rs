//! The steps of a plan, carried out on a FAT filesystem: first in memory, then all at once.

use super::trees::{ino_of, item_of, stamps};
use super::{Volume, Volumes};
use crate::error::{Error, Result};
use crate::guestfs::edit::{self, Attributes, Edit, Kind, Node};
use crate::guestfs::fat::{Content, Item, Stamps, Supply, Target, Wanted, rewrite};
use crate::ops::merge::Version;
use crate::ops::merge::plan::Plan;
use crate::ops::merge::steps::Step;
use crate::units::{index, length};
use std::collections::{BTreeMap, HashMap};

/// Where a file's bytes come from.
#[derive(Clone, Debug)]
enum Bytes {
    Of(Version, u32),
    Given(Vec<u8>),
}

/// A file or folder in the making.
#[derive(Clone, Debug)]
struct Object {
    is_folder: bool,
    attributes: u8,
    stamps: Stamps,
    bytes: Bytes,
    children: BTreeMap<String, Node>,
}

/// The filesystem in the making: the new base's, and what is done to it.
struct Model<'a> {
    volumes: &'a Volumes<'a>,
    objects: HashMap<Node, Object>,
}

/// The bytes of what is in the target.
struct Source<'a> {
    volumes: &'a Volumes<'a>,
    bytes: Vec<Bytes>,
}

/// Carries out `plan` on `volume`, which holds the new base's filesystem; then all of it is read again.
///
/// # Errors
/// `NoSpace` when the filesystem is too small for both sides' files; as [`rewrite`]. The volume is then to be thrown away.
pub fn apply(plan: &Plan, volumes: &Volumes<'_>, volume: &dyn edit::Volume) -> Result<()> {
    if plan.steps.is_empty() {
        return Ok(());
    }
    let mut model = Model::of(volumes);
    for step in &plan.steps {
        model.step(step)?;
    }
    let (target, bytes) = model.target()?;
    let Volume { fat, tree } = &volumes.base;
    rewrite(volume, fat, tree, &target, &Source { volumes, bytes })
}

impl Object {
    fn of(item: &Item, ino: u32) -> Self {
        Self {
            is_folder: item.is_folder,
            attributes: item.attributes & crate::guestfs::fat::ATTRIBUTES,
            stamps: item.stamps,
            bytes: Bytes::Of(Version::Base, ino),
            children: BTreeMap::new(),
        }
    }

    fn say(&mut self, attributes: &Attributes) {
        self.attributes = u8::try_from(attributes.mode).unwrap_or(0) & crate::guestfs::fat::ATTRIBUTES;
        self.stamps = stamps(attributes.mtime, attributes.crtime, attributes.atime);
    }
}

impl<'a> Model<'a> {
    fn of(volumes: &'a Volumes<'a>) -> Self {
        let mut objects: HashMap<Node, Object> = HashMap::new();
        for (number, item) in volumes.base.tree.items.iter().enumerate() {
            let node = Node::Old(ino_of(number));
            objects.insert(node, Object::of(item, ino_of(number)));
            let above = objects.get_mut(&Node::Old(ino_of(item.folder))).filter(|_| number != 0);
            if let Some(above) = above {
                above.children.insert(item.name.clone(), node);
            }
        }
        Self { volumes, objects }
    }

    fn object(&mut self, node: Node) -> Result<&mut Object> {
        self.objects
            .get_mut(&node)
            .ok_or_else(|| Error::invalid(format!("a step is about {node}, which is not there")))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Copy { node, from } => self.object(*node)?.bytes = Bytes::Of(from.0, from.1),
            Step::Put { node, bytes } => self.object(*node)?.bytes = Bytes::Given(bytes.clone()),
            Step::Edit(Edit::Make { id, kind, attributes }) => {
                let is_folder = match kind {
                    Kind::Folder => true,
                    Kind::File => false,
                    _ => return Err(Error::unsupported("FAT has files and folders only")),
                };
                let (stamps, bytes) = (Stamps::default(), Bytes::Given(Vec::new()));
                let mut object =
                    Object { is_folder, attributes: 0, stamps, bytes, children: BTreeMap::new() };
                object.say(attributes);
                self.objects.insert(Node::New(*id), object);
            }
            Step::Edit(Edit::Link { folder, name, to }) => {
                let name = text(name)?;
                self.object(*folder)?.children.insert(name, *to);
            }
            Step::Edit(Edit::Unlink { folder, name }) => {
                let name = text(name)?;
                self.object(*folder)?.children.remove(&name);
            }
            Step::Edit(Edit::Attributes { node, attributes }) => self.object(*node)?.say(attributes),
            Step::Edit(edit) => return Err(Error::unsupported(format!("FAT cannot do this: {edit}"))),
        }
        Ok(())
    }

    /// What the steps came to, each folder before what is in it, and where the bytes of each file are.
    fn target(&self) -> Result<(Target, Vec<Bytes>)> {
        let (mut target, mut bytes, mut nodes) = (Target::default(), Vec::new(), vec![Node::Old(ino_of(0))]);
        let place = |folder: usize, name: &str, node: Node, target: &Target| -> Result<(Wanted, Bytes)> {
            let object = self.objects.get(&node).ok_or_else(|| Error::invalid("a name leads to nothing"))?;
            let old = self.in_place(node, name, target.items.get(folder));
            let content = match &object.bytes {
                _ if object.is_folder => Content::Kept,
                Bytes::Of(Version::Base, ino) if old.is_some_and(|old| ino_of(old) == *ino) => Content::Kept,
                bytes => Content::New(self.size(bytes)?),
            };
            let (is_folder, attributes, stamps) = (object.is_folder, object.attributes, object.stamps);
            let wanted =
                Wanted { name: name.to_owned(), folder, is_folder, old, attributes, stamps, content };
            Ok((wanted, object.bytes.clone()))
        };
        let (root, none) = place(0, "", nodes[0], &target)?;
        target.items.push(root);
        bytes.push(none);
        let mut next = 0;
        while let Some(object) = nodes.get(next).and_then(|node| self.objects.get(node)) {
            // A plan without circles never has more names than there are objects.
            if nodes.len() > self.objects.len() {
                return Err(Error::invalid("something has two names, which FAT cannot do"));
            }
            for (name, node) in &object.children {
                let (wanted, source) = place(next, name, *node, &target)?;
                target.items.push(wanted);
                bytes.push(source);
                nodes.push(*node);
            }
            next += 1;
        }
        Ok((target, bytes))
    }

    /// The item of the base that a node still is, under its name in its folder.
    fn in_place(&self, node: Node, name: &str, above: Option<&Wanted>) -> Option<usize> {
        let Node::Old(ino) = node else { return None };
        let number = item_of(ino)?;
        let item = self.volumes.base.tree.items.get(number)?;
        let same =
            number == 0 || (item.name == name && above.is_some_and(|above| above.old == Some(item.folder)));
        same.then_some(number)
    }

    fn size(&self, bytes: &Bytes) -> Result<u32> {
        match bytes {
            Bytes::Of(version, ino) => Ok(self.volumes.item((*version, *ino))?.1.size),
            Bytes::Given(bytes) => {
                u32::try_from(bytes.len()).map_err(|_| Error::unsupported("FAT takes no file of 4 GiB"))
            }
        }
    }
}

fn text(name: &[u8]) -> Result<String> {
    String::from_utf8(name.to_vec()).map_err(|_| Error::invalid("a name is no UTF-8, which FAT cannot keep"))
}

impl Supply for Source<'_> {
    fn fill(&self, item: usize, at: u64, buf: &mut [u8]) -> Result<()> {
        match &self.bytes[item] {
            Bytes::Of(version, ino) => {
                let (volume, item) = self.volumes.item((*version, *ino))?;
                volume.fat.read(item, at, buf)
            }
            Bytes::Given(bytes) => {
                let part = bytes.get(index(at)..index(at + length(buf.len())));
                buf.copy_from_slice(part.ok_or_else(|| Error::invalid("a read past the end of a file"))?);
                Ok(())
            }
        }
    }
}
