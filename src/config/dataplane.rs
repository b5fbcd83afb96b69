//! `[dataplane]`: the engine and its workers.
#![forbid(unsafe_code)]

use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::settings::Settings;

keys! {
    "dataplane";
    ENGINE = "engine",
        Kind::Choice(&["auto", "uring", "batch", "simple"]),
        Preset::Text("auto"),
        "Engine that moves packets: \"auto\", \"uring\", \"batch\" or \"simple\"",
        "\"uring\": io_uring with segmentation offloads.\n\
         \"batch\": plain system calls with segmentation offloads.\n\
         \"simple\": one packet for each system call, as in Flannel.\n\
         \"auto\": the first of these that runs on this host. `hopsack status` shows which one it is, and why.";
    WORKERS = "workers",
        Kind::NumberOrAuto { min: 1, max: 64 },
        Preset::Text("auto"),
        "Number of queues of the overlay device, each with a socket, or \"auto\"",
        "With several queues a ping seldom waits behind a bulk transfer. Queues share threads; a queue with a bulk \
         transfer has a thread of its own until the transfer ends. \"auto\" is 4, on a host with one CPU 1. The simple \
         engine has 1.";
    OFFLOAD = "offload",
        Kind::Bool,
        Preset::Bool(true),
        "Exchange up to 64 KiB of one flow with the kernel as one packet (GSO, GRO)",
        "The simple engine ignores this key.";
    BUSY_POLL_US = "busy_poll_us",
        Kind::Number { min: 0, max: 1000 },
        Preset::Number(0),
        "Microseconds for which a worker polls before it sleeps; 0 is off, 100 is a good value",
        "A worker polls only while packets arrive shortly after one another, and never during a bulk transfer or on a \
         single CPU. 100 removes most of the wake-up time from requests and their answers, and costs some CPU time.";
    FAST_PATH = "fast_path",
        Kind::Choice(&["auto", "off"]),
        Preset::Text("auto"),
        "Kernel fast path for packets in clear: \"auto\" or \"off\"",
        "\"auto\": an eBPF program forwards packets to and from hosts that have a fast path too, without the daemon; \
         everything else goes by the engine. It needs Linux 6.6, CAP_BPF and an IPv4 underlay; otherwise the engine \
         carries all packets, and `hopsack status` says why. Datagrams of the fast path do not pass the INPUT and \
         OUTPUT chains of this host.\n\
         \"off\": the engine carries all packets. It is faster for floods of small packets.";
    REALTIME = "realtime",
        Kind::Bool,
        Preset::Bool(false),
        "Run the threads for small packets with real-time priority (SCHED_FIFO)",
        "A ping then waits for no other program. It needs CAP_SYS_NICE. A thread with a bulk transfer never has this \
         priority. Otherwise all threads have a short time slice (Linux 6.12). `hopsack status --json` shows what is in \
         force. The simple engine ignores this key.";
}

/// `[dataplane]`
#[derive(Debug, Clone)]
pub struct DataplaneConfig {
    /// Engine that moves packets.
    pub engine: EngineChoice,
    /// Number of queues of the overlay device, each with a socket; `None`: a number that suits this
    /// machine.
    pub workers: Option<u8>,
    /// Whether the kernel may hand over and take super packets.
    pub offload: bool,
    /// A worker may poll for this many microseconds before it sleeps; 0: never.
    pub busy_poll_us: u16,
    /// Whether the kernel fast path is used where it can be.
    pub fast_path: bool,
    /// Whether threads for small packets run with real-time priority.
    pub realtime: bool,
}

/// `dataplane.engine`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// The best engine that runs on this host.
    Auto,
    /// io_uring, or an error where it is forbidden.
    Uring,
    /// Plain system calls with offloads.
    Batch,
    /// One packet for each system call.
    Simple,
}

impl DataplaneConfig {
    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let engine = match settings.text(&ENGINE) {
            "uring" => EngineChoice::Uring,
            "batch" => EngineChoice::Batch,
            "simple" => EngineChoice::Simple,
            _ => EngineChoice::Auto,
        };
        let workers = settings.number(&WORKERS);
        let busy_poll_us = settings.number(&BUSY_POLL_US).expect("the row's kind is a number");
        if engine == EngineChoice::Simple && workers.is_some_and(|count| count > 1) {
            settings.refuse_with(&WORKERS, "the simple engine has one worker: write 1 or \"auto\"")?;
        }
        if engine == EngineChoice::Simple && busy_poll_us > 0 {
            settings.refuse_with(&BUSY_POLL_US, "the simple engine does not poll: write 0")?;
        }
        let (offload, realtime) = (settings.is_set(&OFFLOAD), settings.is_set(&REALTIME));
        let fast_path = settings.text(&FAST_PATH) == "auto";
        Ok(Self { engine, workers, offload, busy_poll_us, fast_path, realtime })
    }
}
