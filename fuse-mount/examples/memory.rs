//! Disks in memory, mounted at a directory until it is unmounted or SIGTERM comes.
//!
//! `memory DIR [SIZE] [CLOSE_MS]`: `clones/disk.raw` and `bases/disk@1.raw` of SIZE bytes (1 GiB). Dropping an open
//! clone takes CLOSE_MS milliseconds; then a line is printed. Prints a line when mounted, and one when all is closed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../tests/common/memory.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod memory;

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use memory::{Memory, Op};
use nix::sys::signal::{SigSet, Signal};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: memory DIR [SIZE] [CLOSE_MS]")?);
    let size = arguments.next().map_or(Ok(1 << 30), |text| text.parse())?;
    let delay = Duration::from_millis(arguments.next().map_or(Ok(0), |text| text.parse())?);
    let source = Memory::default();
    source.add("bases/disk@1.raw", size);
    let disk = source.add("clones/disk.raw", size);
    if !delay.is_zero() {
        disk.probe(move |op| {
            if op == Op::Drop {
                std::thread::sleep(delay);
                println!("dropped");
            }
            Ok(())
        });
    }
    // Blocked before any thread starts, so that only the one below takes it.
    let signals = SigSet::from_iter([Signal::SIGTERM]);
    signals.thread_block()?;
    let mount = fuse_mount::mount(source, &dir, memory::options())?;
    println!("mounted at {}", mount.dir().display());
    std::io::stdout().flush()?;
    let stopper = mount.stopper();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if let Err(error) = stopper.stop() {
                eprintln!("{error}");
            }
        }
    });
    mount.wait()?;
    println!("done");
    Ok(())
}
