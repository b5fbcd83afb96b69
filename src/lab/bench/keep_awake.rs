//! Keeps the machine's CPUs from halting: what then remains of a round trip is work, without the wake-ups of idle CPUs.
//!
//! By the kernel's PM QoS interface where idle states are chosen by a driver; elsewhere by threads that run when nobody
//! else wants to, one a CPU. Their time is no load: [`KeepAwake::spinners`] says what to leave out.
//!
//! Invariant: dropped, or with the process killed, the machine idles as before. Sources: the kernel's
//! admin-guide/pm/cpuidle, sched(7).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::super::error::LabError;
use crate::sys::cpu;

/// What keeps the CPUs awake while it is there.
#[derive(Debug)]
pub(super) enum KeepAwake {
    /// The open file is the request.
    Device { _file: File },
    /// The threads, and what tells them to end.
    Spinners { threads: Vec<(JoinHandle<()>, PathBuf)>, stop: Arc<AtomicBool> },
}

impl KeepAwake {
    pub(super) fn hold() -> Result<Self, LabError> {
        if let Some(file) = request() {
            return Ok(Self::Device { _file: file });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut spinners = Self::Spinners { threads: Vec::new(), stop: Arc::clone(&stop) };
        for cpu in cpu::allowed().map_err(LabError::io("ask for the CPUs"))? {
            let spinner = spin(cpu, Arc::clone(&stop)).map_err(LabError::io("keep a CPU awake"))?;
            if let Self::Spinners { threads, .. } = &mut spinners {
                threads.push(spinner);
            }
        }
        Ok(spinners)
    }

    /// By what, for the report.
    pub(super) fn how(&self) -> &'static str {
        match self {
            Self::Device { .. } => "/dev/cpu_dma_latency, held at 0",
            Self::Spinners { .. } => "a thread on each that spins at idle priority",
        }
    }

    /// The `stat` files of the threads whose time counts as idle.
    pub(super) fn spinners(&self) -> Vec<PathBuf> {
        match self {
            Self::Device { .. } => Vec::new(),
            Self::Spinners { threads, .. } => threads.iter().map(|(_, stat)| stat.clone()).collect(),
        }
    }
}

impl Drop for KeepAwake {
    fn drop(&mut self) {
        let Self::Spinners { threads, stop } = self else { return };
        stop.store(true, Ordering::Relaxed);
        for (thread, _) in threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// No latency at all is tolerated. None where no driver would listen: there CPUs halt whatever is asked for.
fn request() -> Option<File> {
    let driver = fs::read_to_string("/sys/devices/system/cpu/cpuidle/current_driver").ok()?;
    if driver.trim() == "none" {
        return None;
    }
    let mut file = File::options().write(true).open("/dev/cpu_dma_latency").ok()?;
    file.write_all(&0_i32.to_ne_bytes()).ok().map(|()| file)
}

/// A thread that is pushed aside by whatever becomes ready, on one CPU.
fn spin(cpu: usize, stop: Arc<AtomicBool>) -> io::Result<(JoinHandle<()>, PathBuf)> {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = thread::Builder::new().name("hopsack-awake".into()).spawn(move || {
        let ready = cpu::pin(cpu).and_then(|()| cpu::run_when_idle());
        let ready = ready.and_then(|()| fs::read_link("/proc/thread-self"));
        let spins = ready.is_ok();
        // If nobody listens, nobody needs it.
        let _ = tell.send(ready);
        // No pause instruction: a hypervisor may take many of them for waiting, and halt the CPU.
        while spins && !stop.load(Ordering::Relaxed) {}
    })?;
    let own = told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))?;
    Ok((thread, PathBuf::from("/proc").join(own).join("stat")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinners_take_cpu_time_and_end() {
        let stop = Arc::new(AtomicBool::new(false));
        let cpu = *cpu::allowed().expect("asked").last().expect("one");
        let spinner = spin(cpu, Arc::clone(&stop)).expect("it spins");
        let awake = KeepAwake::Spinners { threads: vec![spinner], stop };
        let [stat] = awake.spinners().try_into().expect("one");
        let ticks = || {
            let text = fs::read_to_string(&stat).expect("it runs");
            let (_, fields) = text.rsplit_once(") ").expect("a name");
            fields.split(' ').nth(11).and_then(|ticks| ticks.parse::<u64>().ok()).expect("user time")
        };
        while ticks() == 0 {
            thread::yield_now();
        }
        drop(awake);
        assert!(!stat.exists());
    }
}
