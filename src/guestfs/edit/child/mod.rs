//! The child: it waits for orders, confined, and has libext2fs carry them out.

mod apply;
mod cache;
mod confine;
mod ffi;
mod fs;
mod names;
mod port;

use super::wire::{Answer, Mode, Order};
use crate::error::Result;
use apply::Work;
use cache::Cache;
use fs::{Failure, Fs};
use port::Port;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::rc::Rc;

/// Does what the parent orders over descriptor 0, and ends.
///
/// # Errors
/// When the child cannot be confined: then nothing was read.
pub fn serve() -> Result<ExitCode> {
    confine::confine()?;
    // SAFETY: the parent gave the socket as descriptor 0, and nothing else of this process uses it.
    let port = Port::new(unsafe { File::from_raw_fd(confine::SOCKET) });
    // Without a parent nobody is left to tell.
    Ok(if task(port).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn task(mut port: Port) -> io::Result<()> {
    let Order::Hello { size, mode } = port.next()? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (cache, result) = match Fs::open(Cache::new(port, size), mode == Mode::Edit) {
        Err((failure, cache)) => (cache, Err(failure)),
        Ok(fs) => {
            let cache = Rc::clone(&fs.cache);
            (cache, if mode == Mode::Edit { edit(fs) } else { scan(&fs) })
        }
    };
    let answer = match result {
        Ok((made, freed)) => Answer::Finished { made, freed },
        Err(Failure { of_edit, class, text }) => Answer::Failed { of_edit, class, text },
    };
    let port = &mut cache.borrow_mut().port;
    port.say(&answer)?;
    port.flush()
}

fn edit(fs: Fs) -> Result<(u32, u32), Failure> {
    let cache: Rc<RefCell<Cache>> = Rc::clone(&fs.cache);
    let mut work = Work::new(fs)?;
    for number in 0_u64.. {
        let order = cache.borrow_mut().port.next()?;
        let done = match order {
            Order::Edit(edit) => work.apply(edit),
            Order::Write { node, at, len } => work.write(number, node, at, len),
            Order::Finish => break,
            Order::Hello { .. } | Order::Bytes(_) => Err(Failure::invalid("an order makes no sense")),
        };
        done.map_err(|failure| Failure { of_edit: true, ..failure })?;
        cache.borrow_mut().port.say(&Answer::Done)?;
    }
    work.finish()
}

fn scan(fs: &Fs) -> Result<(u32, u32), Failure> {
    let size = u64::from(fs.info.block_size);
    let mut run = (0, 0);
    fs.scan(&mut |block, count| {
        if block == run.0 + run.1 {
            run.1 += count;
            return Ok(());
        }
        tell(fs, std::mem::replace(&mut run, (block, count)), size)
    })?;
    tell(fs, run, size)?;
    Ok((0, 0))
}

fn tell(fs: &Fs, (block, count): (u64, u64), size: u64) -> io::Result<()> {
    let (Some(at), Some(len)) = (block.checked_mul(size), count.checked_mul(size)) else { return Ok(()) };
    // What a damaged map of blocks leads to is no part of the filesystem.
    if len == 0 || block.saturating_add(count) > fs.info.blocks {
        return Ok(());
    }
    fs.cache.borrow_mut().port.say(&Answer::Meta { at, len })
}
