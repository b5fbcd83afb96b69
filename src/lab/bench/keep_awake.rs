//! Keeps the machine's CPUs from halting. A round trip then contains only work, without the
//! wake-ups of idle CPUs.
//!
//! It uses the kernel's PM QoS interface if a driver chooses idle states. Otherwise it uses one
//! thread on each CPU that spins at idle priority. The time of these threads counts as idle:
//! [`KeepAwake::spinners`] lists them.
//!
//! Invariant: when it is dropped, or the process is killed, the machine idles as before. Sources:
//! the kernel's admin-guide/pm/cpuidle, sched(7).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::super::error::LabError;
use crate::sys::cpu;

/// Keeps the CPUs awake while it exists.
#[derive(Debug)]
pub(super) enum KeepAwake {
    /// The kernel keeps the CPUs awake while this file is open.
    Device { _file: File },
    /// The spinning threads, and the flag that ends them.
    Spinners { threads: Vec<(JoinHandle<()>, PathBuf)>, stop: Arc<AtomicBool> },
}

impl KeepAwake {
    /// Starts to keep the CPUs awake.
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

    /// Method in words, for the report.
    pub(super) fn how(&self) -> &'static str {
        match self {
            Self::Device { .. } => "/dev/cpu_dma_latency, held at 0",
            Self::Spinners { .. } => "a thread on each CPU that spins at idle priority",
        }
    }

    /// The `stat` files of the spinning threads. Their CPU time counts as idle.
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

/// Asks the kernel for a wake-up latency of 0. None if no idle driver is active: then the request
/// would have no effect.
fn request() -> Option<File> {
    let driver = fs::read_to_string("/sys/devices/system/cpu/cpuidle/current_driver").ok()?;
    if driver.trim() == "none" {
        return None;
    }
    let mut file = File::options().write(true).open("/dev/cpu_dma_latency").ok()?;
    file.write_all(&0_i32.to_ne_bytes()).ok().map(|()| file)
}

/// Starts a thread that spins on one CPU and yields to every other thread.
fn spin(cpu: usize, stop: Arc<AtomicBool>) -> io::Result<(JoinHandle<()>, PathBuf)> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = thread::Builder::new().name("hopsack-awake".into()).spawn(move || {
        let ready = cpu::pin(cpu).and_then(|()| cpu::run_when_idle());
        let ready = ready.and_then(|()| fs::read_link("/proc/thread-self"));
        let spins = ready.is_ok();
        // If the receiver is gone, nothing needs the answer.
        let _ = sender.send(ready);
        // There is no pause instruction: a hypervisor may treat many of them as waiting, and halt
        // the CPU.
        while spins && !stop.load(Ordering::Relaxed) {}
    })?;
    let own = receiver.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))?;
    Ok((thread, PathBuf::from("/proc").join(own).join("stat")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_threads_use_cpu_and_end() {
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
