//! For tests: a source of names behind which nothing is.

use std::io;
use std::sync::Arc;

use crate::view::{View, look_of_mounter};
use crate::{Device, Opener, Source, Stat};

pub(crate) struct NamesOnly;

impl NamesOnly {
    pub(crate) fn view() -> View<Self> {
        View::new(NamesOnly, NamesOnly.folders(), look_of_mounter(false))
    }
}

impl Source for NamesOnly {
    fn folders(&self) -> Vec<String> {
        vec!["disks".to_owned()]
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(vec!["a".to_owned(), "b".repeat(200)])
    }

    fn stat(&self, _: &str, _: &str) -> io::Result<Stat> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn open(&self, _: &str, _: &str, _: Opener) -> io::Result<Arc<dyn Device>> {
        Err(io::ErrorKind::NotFound.into())
    }
}
