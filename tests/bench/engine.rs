//! Loads one disk image inside this process, by one of several engines, and prints what came through as one line of JSON.
//!
//!   engine ENGINE IMAGE JOB BLOCK FROM TO THREADS SECONDS
//!
//! ENGINE is cowshed (the image alone), store (the same as the clone that it is, with locks and the log that outlives a
//! kill), imago, qcow2-rs (one thread) or raw (IMAGE is a raw file). JOB is read or write at random places between the
//! bytes FROM and TO, sync (each write followed by a flush), or touch: one write to each 128 KiB, in a scattered order,
//! until all have one.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, dead_code, unreachable_pub, missing_docs)]

#[path = "../common/images.rs"]
mod images;
#[path = "../common/qemu.rs"]
mod qemu;
#[path = "../common/rng.rs"]
mod rng;

use cowshed::store::{Access, Name, OpenDisk, Store};
use cowshed::units::GuestOffset;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use qcow2_rs::helpers::Qcow2IoBuf;
use rng::Rng;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// Bytes from one place that is touched to the next.
const STRIDE: u64 = 128 << 10;
/// The touched places are visited this many apart.
const SCATTER: u64 = 1019;

trait Engine {
    fn read(&self, buf: &mut [u8], at: u64);
    fn write(&self, data: &[u8], at: u64);
    fn flush(&self);
    fn close(&self) {
        self.flush();
    }
}

type Opener = Box<dyn Fn() -> Box<dyn Engine> + Sync>;

struct Raw(Arc<File>);

impl Engine for Raw {
    fn read(&self, buf: &mut [u8], at: u64) {
        self.0.read_exact_at(buf, at).unwrap();
    }
    fn write(&self, data: &[u8], at: u64) {
        self.0.write_all_at(data, at).unwrap();
    }
    fn flush(&self) {
        self.0.sync_data().unwrap();
    }
}

struct Ours<D>(Arc<D>);

impl<D: AsRef<cowshed::disk::Disk>> Engine for Ours<D> {
    fn read(&self, buf: &mut [u8], at: u64) {
        (*self.0).as_ref().read(buf, GuestOffset(at)).unwrap();
    }
    fn write(&self, data: &[u8], at: u64) {
        (*self.0).as_ref().write(data, GuestOffset(at)).unwrap();
    }
    fn flush(&self) {
        (*self.0).as_ref().flush().unwrap();
    }
    fn close(&self) {
        (*self.0).as_ref().close().unwrap();
    }
}

type ImagoImage = FormatAccess<imago::file::File>;
struct Imago(Arc<ImagoImage>);

impl Engine for Imago {
    fn read(&self, buf: &mut [u8], at: u64) {
        self.0.read(buf, at).unwrap();
    }
    fn write(&self, data: &[u8], at: u64) {
        self.0.write(data, at).unwrap();
    }
    fn flush(&self) {
        self.0.flush().unwrap();
        self.0.sync().unwrap();
    }
}

/// It takes buffers of its own kind, so each thread keeps one: what is copied is not timed against it, nor used.
struct Qcow2Rs {
    runtime: tokio::runtime::Runtime,
    device: qcow2_rs::dev::Qcow2Dev<qcow2_rs::sync_io::Qcow2IoSync>,
    buf: RefCell<Qcow2IoBuf<u8>>,
}

impl Engine for Qcow2Rs {
    fn read(&self, buf: &mut [u8], at: u64) {
        let mut own = self.buf.borrow_mut();
        let done = self.runtime.block_on(self.device.read_at(&mut own[..buf.len()], at)).unwrap();
        assert_eq!(done, buf.len());
    }
    fn write(&self, _: &[u8], _: u64) {
        panic!("qcow2-rs destroys what other engines wrote; it only reads here");
    }
    fn flush(&self) {}
}

fn store_and_name(image: &Path) -> (Store, Name) {
    let clone = image.parent().unwrap();
    let name = clone.file_name().unwrap().to_str().unwrap().parse().unwrap();
    (Store::open(clone.parent().unwrap().parent().unwrap()).unwrap(), name)
}

fn opener(engine: &str, image: &Path, write: bool, block: usize) -> Opener {
    match engine {
        "raw" => {
            let file = Arc::new(OpenOptions::new().read(true).write(write).open(image).unwrap());
            Box::new(move || Box::new(Raw(file.clone())))
        }
        "cowshed" => {
            let disk = Arc::new(images::open(image, write));
            Box::new(move || Box::new(Ours(disk.clone())))
        }
        "store" => {
            let (store, name) = store_and_name(image);
            let access = if write { Access::Write } else { Access::Read };
            let disk: Arc<OpenDisk> = Arc::new(store.open_clone(&name, access).unwrap());
            Box::new(move || Box::new(Ours(disk.clone())))
        }
        "imago" => {
            let image = imago::qcow2::Qcow2::<imago::file::File>::builder_path(image)
                .write(write)
                .open(PermissiveImplicitOpenGate::default())
                .unwrap();
            let image = Arc::new(FormatAccess::new(image));
            Box::new(move || Box::new(Imago(image.clone())))
        }
        "qcow2-rs" => {
            let image = image.to_owned();
            Box::new(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let params = qcow2_rs::dev::Qcow2DevParams::new(9, None, None, true, false);
                let device = runtime.block_on(async {
                    let device = qcow2_rs::utils::qcow2_setup_dev_sync(&image, &params).unwrap();
                    device.qcow2_prep_io().await.unwrap();
                    device
                });
                Box::new(Qcow2Rs { runtime, device, buf: RefCell::new(Qcow2IoBuf::new(block)) })
            })
        }
        other => panic!("there is no engine {other}"),
    }
}

/// What one thread does until the time is over, or until there is nothing more to touch.
struct Job {
    kind: String,
    block: usize,
    from: u64,
    to: u64,
    until: Instant,
    touched: AtomicU64,
}

impl Job {
    /// The next place.
    fn next(&self, rng: &mut Rng) -> Option<u64> {
        if self.kind != "touch" {
            let blocks = (self.to - self.from) / self.block as u64;
            return Some(self.from + rng.below(blocks) * self.block as u64);
        }
        let (places, number) = ((self.to - self.from) / STRIDE, self.touched.fetch_add(1, Ordering::Relaxed));
        (number < places).then(|| self.from + number * SCATTER % places * STRIDE)
    }

    /// Requests that were answered in time.
    fn run(&self, engine: &dyn Engine, seed: u64) -> u64 {
        // From the start of a page on, as the buffers of the other programs: long copies take half the time there.
        let mut bytes = vec![1; self.block + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        let buf = &mut bytes[start..start + self.block];
        let (mut rng, mut answered) = (Rng::new(seed), 0);
        while self.kind == "touch" || Instant::now() < self.until {
            let Some(at) = self.next(&mut rng) else { break };
            match self.kind.as_str() {
                "read" => engine.read(buf, at),
                "write" | "touch" => engine.write(buf, at),
                "sync" => {
                    engine.write(buf, at);
                    engine.flush();
                }
                other => panic!("there is no job {other}"),
            }
            answered += 1;
        }
        answered
    }
}

fn processor_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let (kind, block, threads) = (words[2].clone(), number(3) as usize, number(6));
    let open = opener(&words[0], Path::new(&words[1]), kind != "read", block);
    let (start, used) = (Instant::now(), processor_seconds());
    let until = start + Duration::from_secs(number(7));
    let job = Job { kind, block, from: number(4), to: number(5), until, touched: AtomicU64::new(0) };
    let answered: u64 = std::thread::scope(|scope| {
        let (job, open) = (&job, &open);
        let workers: Vec<_> = (0..threads).map(|seed| scope.spawn(move || job.run(&*open(), seed))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    let (seconds, used) = (start.elapsed().as_secs_f64(), processor_seconds() - used);
    if job.kind != "read" {
        open().close();
    }
    let peak = getrusage(UsageWho::RUSAGE_SELF).unwrap().max_rss() / 1024;
    println!(
        "{{\"iops\": {:.0}, \"cpu_us\": {:.2}, \"peak_mib\": {peak}}}",
        answered as f64 / seconds,
        used * 1e6 / answered as f64
    );
}
