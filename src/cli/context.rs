//! What every command needs.

use crate::error::Result;
use crate::store::Store;
use anyhow::Context as _;
use std::path::PathBuf;

/// Which store a command works on; opened when it is needed.
#[derive(Debug)]
pub(super) struct Context {
    store: Option<PathBuf>,
}

impl Context {
    pub(super) fn new(store: Option<PathBuf>) -> Self {
        Self { store }
    }

    fn path(&self) -> Result<PathBuf> {
        self.store.clone().map_or_else(Store::default_path, Ok)
    }

    /// This program, which runs parts of the work as a process of its own.
    pub(super) fn program() -> anyhow::Result<PathBuf> {
        std::env::current_exe().context("the path of this program cannot be found")
    }

    /// The store, which must exist.
    pub(super) fn store(&self) -> Result<Store> {
        Store::open(&self.path()?)
    }

    /// The store, made when its folder is absent or empty.
    pub(super) fn store_or_new(&self) -> Result<Store> {
        Store::open_or_create(&self.path()?)
    }
}
