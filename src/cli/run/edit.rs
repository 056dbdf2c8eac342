//! A base is edited: its guest writes to a throw-away layer, which becomes the next version when all went well.

use super::{Disk, Way};
use crate::cli::{Outcome, failure, output};
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::ops::import::promote_scratch;
use crate::store::{Base, BaseRef, Scratch, Store, Target};
use crate::vm::{SignalWatch, VmExit};
use anyhow::Context as _;
use fuse_mount::Transport;
use std::process::ExitCode;
use std::sync::Arc;

/// A base that is being edited.
pub(super) struct Edit {
    base: Base,
    layer: Arc<Scratch>,
    signals: Signals,
}

/// Every request to end, from the beginning of the edit on.
struct Signals(SignalWatch);

impl Progress for Signals {
    fn total(&self, _: u64) {}

    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.is_pending()
    }
}

impl Edit {
    pub(super) fn begin(store: &Store, target: &Target) -> anyhow::Result<Self> {
        let signals = Signals(SignalWatch::install().context("signals cannot be caught")?);
        let base = newest(store, target)?;
        let exact = BaseRef::exact(base.name.clone(), base.version);
        let layer = Arc::new(store.scratch(&Target::Base(exact))?);
        Ok(Self { base, layer, signals })
    }

    /// The disk that the guest writes to.
    pub(super) fn disk(&self, way: Way, transport: Transport) -> anyhow::Result<Disk> {
        Disk::of_scratch(Arc::clone(&self.layer), &self.base.name, way, transport)
    }

    /// Makes the next version of what the machine left, if it ended well.
    pub(super) fn end(self, store: &Store, ran: anyhow::Result<VmExit>) -> Outcome {
        let Base { name, version, .. } = &self.base;
        let dropped = || format!("the edit of {name}@{version} is not kept");
        let code = ran.with_context(dropped)?.code;
        if self.signals.cancelled() {
            failure::write_line(&format!("{}: it was asked to end", dropped()));
            return Ok(ExitCode::from(if code == 0 { failure::INTERRUPTED } else { code }));
        }
        if code != 0 {
            let sentence = format!("{}: the machine ended with code {code}", dropped());
            failure::write_line(&sentence);
            return Ok(ExitCode::from(code));
        }
        let new = promote_scratch(store, &self.layer, name, &self.signals).with_context(dropped)?;
        output::line(format!("{name}@{} is {name}@{version} with what this run changed", new.version))?;
        if new.version > version + 1 {
            let sentence = format!(
                "{name}@{} came while this ran: what it changed is not in {name}@{}",
                new.version - 1,
                new.version
            );
            failure::write_line(&sentence);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The newest version of the base that `target` means; another one is never meant.
fn newest(store: &Store, target: &Target) -> Result<Base> {
    let base = match target {
        Target::Base(base) => base,
        Target::Clone(name) => {
            let hint = "it keeps what its guest writes without --edit";
            return Err(Error::invalid(format!("{name} is a clone: {hint}")));
        }
    };
    let newest = store.base(&BaseRef { name: base.name.clone(), version: None })?;
    if base.version.is_some_and(|version| version != newest.version) {
        let message =
            format!("only the newest version of a base is edited: {}@{}", base.name, newest.version);
        return Err(Error::new(Kind::Invalid, message));
    }
    Ok(newest)
}
