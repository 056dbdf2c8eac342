//! A process that is killed: the host keeps what it wrote, and nothing more comes.

use cowshed::qcow2::LogPlace;
use cowshed::storage::{Memory, Run, Session, Storage};
use cowshed::units::HostOffset;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The host's memory of an image and of the log beside it. It outlives processes.
#[derive(Debug)]
pub struct Host {
    pub image: Arc<Memory>,
    pub log: Mutex<Option<Arc<Memory>>>,
    pub session: Session,
}

impl Host {
    pub fn new(image: &[u8]) -> Arc<Self> {
        let image = Arc::new(Memory::from_bytes(image));
        Arc::new(Self { image, log: Mutex::new(None), session: Session([7; 32]) })
    }

    /// The same files in another session, as after a power cut that lost nothing.
    pub fn restarted(&self) -> Arc<Self> {
        let log = self.log.lock().unwrap().clone();
        Arc::new(Self { image: self.image.clone(), log: Mutex::new(log), session: Session([8; 32]) })
    }

    /// A copy of both files as they are now.
    pub fn copy(&self) -> Arc<Self> {
        let copy = |file: &Memory| Arc::new(Memory::from_bytes(&file.bytes()));
        let log = self.log.lock().unwrap().as_deref().map(copy);
        Arc::new(Self { image: copy(&self.image), log: Mutex::new(log), session: self.session })
    }
}

/// How long a process lives, counted in changes that it makes on its host.
#[derive(Debug)]
pub struct Life {
    left: AtomicU64,
    dead: AtomicBool,
    /// Seed of how much of the write in flight happens.
    tear: u64,
}

impl Life {
    pub fn of(changes: u64, tear: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(changes), dead: AtomicBool::new(false), tear })
    }

    pub fn endless() -> Arc<Self> {
        Self::of(u64::MAX, 0)
    }

    /// Changes left, of those it was given.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::SeqCst)
    }

    pub fn is_over(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Does a change, or dies in it: `last` does what of it happens then.
    fn change<T>(&self, run: impl FnOnce() -> io::Result<T>, last: impl FnOnce()) -> io::Result<T> {
        if self.is_over() {
            return Err(dead());
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.left.store(0, Ordering::SeqCst);
            self.dead.store(true, Ordering::SeqCst);
            last();
            return Err(dead());
        }
        run()
    }
}

fn dead() -> io::Error {
    io::Error::other("the process was killed")
}

/// A file as a process of limited life has it open.
#[derive(Debug)]
pub struct Mortal {
    file: Arc<dyn Storage>,
    life: Arc<Life>,
}

impl Mortal {
    pub fn new(file: Arc<dyn Storage>, life: Arc<Life>) -> Arc<Self> {
        Arc::new(Self { file, life })
    }
}

impl Storage for Mortal {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<()> {
        if self.life.is_over() { Err(dead()) } else { self.file.read_at(buf, at) }
    }

    fn write_at(&self, data: &[u8], at: HostOffset) -> io::Result<()> {
        // The kernel looks for a fatal signal between two pages of a write.
        let pages = data.len() as u64 / 4096;
        let part = (self.life.tear % (pages + 1) * 4096) as usize;
        self.life.change(|| self.file.write_at(data, at), || self.file.write_at(&data[..part], at).unwrap())
    }

    fn punch(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.life.change(|| self.file.punch(at, len), || ())
    }

    fn sync(&self) -> io::Result<()> {
        self.life.change(|| self.file.sync(), || ())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.life.change(|| self.file.set_len(len), || ())
    }

    fn run_at(&self, at: HostOffset) -> io::Result<Run> {
        self.file.run_at(at)
    }
}

/// The place of the log as such a process sees it.
#[derive(Debug)]
pub struct MortalLog {
    host: Arc<Host>,
    life: Arc<Life>,
}

impl MortalLog {
    pub fn new(host: Arc<Host>, life: Arc<Life>) -> Arc<Self> {
        Arc::new(Self { host, life })
    }
}

impl LogPlace for MortalLog {
    fn session(&self) -> io::Result<Session> {
        Ok(self.host.session)
    }

    fn open(&self, _: bool) -> io::Result<Option<Arc<dyn Storage>>> {
        let log = self.host.log.lock().unwrap().clone();
        Ok(log.map(|log| Mortal::new(log, self.life.clone()) as Arc<dyn Storage>))
    }

    fn create(&self) -> io::Result<Arc<dyn Storage>> {
        self.remove()?;
        let new = Arc::new(Memory::new());
        self.life.change(
            || {
                *self.host.log.lock().unwrap() = Some(new.clone());
                Ok(())
            },
            || (),
        )?;
        Ok(Mortal::new(new, self.life.clone()))
    }

    fn remove(&self) -> io::Result<()> {
        self.life.change(
            || {
                *self.host.log.lock().unwrap() = None;
                Ok(())
            },
            || (),
        )
    }
}
