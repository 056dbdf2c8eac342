//! The process behind a thread id.

/// Process id of the thread `tid`; `tid` itself when the thread is gone or `/proc` does not tell.
pub(crate) fn process_of(tid: u32) -> u32 {
    if tid == 0 {
        return 0;
    }
    std::fs::read_to_string(format!("/proc/{tid}/status"))
        .ok()
        .and_then(|status| {
            let value = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
            value.trim().parse().ok()
        })
        .unwrap_or(tid)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_belongs_to_its_process() {
        let tid = std::thread::spawn(|| nix::unistd::gettid().as_raw()).join();
        let tid = u32::try_from(tid.expect("thread")).expect("positive");
        assert_eq!(super::process_of(std::process::id()), std::process::id());
        assert_eq!(super::process_of(0), 0);
        assert_eq!(super::process_of(tid), tid, "a thread that ended stands for itself");
        let live = std::thread::spawn(|| {
            let tid = u32::try_from(nix::unistd::gettid().as_raw()).expect("positive");
            super::process_of(tid)
        });
        assert_eq!(live.join().expect("thread"), std::process::id());
    }
}
