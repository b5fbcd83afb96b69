//! What the daemon may do: the one table of the parts that need a privilege, and how a process
//! gives up all others.
//!
//! The table names for each part its capabilities, address families and system calls. The daemon's
//! start, `hopsack check` and the systemd unit follow it: the unit is compared with it by the tests
//! of this file. Which parts are configured is decided elsewhere.
//!
//! Invariant: after [`restrict`] this thread, and each thread and program that it starts, has no
//! capability beyond those of the given parts, whatever started the process. Sources:
//! capabilities(7), prctl(2).

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// A part of the daemon that needs something of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Unix sockets: control socket, and messages to systemd.
    Control,
    /// UDP sockets of the underlay, the connection to the store, and the metrics port.
    Internet,
    /// The overlay device, its addresses and routes, kernel settings, and forced socket buffers.
    Overlay,
    /// io_uring.
    Ring,
    /// A port below 1024.
    LowPort,
    /// Real-time priority of worker threads.
    Realtime,
    /// The kernel fast path.
    FastPath,
}

/// One row of the table.
#[derive(Debug)]
pub struct Needs {
    /// The part.
    pub part: Part,
    /// Capabilities, each with the stable code of the error that it is missing.
    pub capabilities: &'static [(Capability, &'static str)],
    /// Address families as systemd names them.
    pub families: &'static [&'static str],
    /// System calls, or systemd's groups of them.
    pub calls: &'static [&'static str],
    /// What the part does with them.
    pub purpose: &'static str,
}

/// What each part needs.
pub const TABLE: &[Needs] = &[
    Needs {
        part: Part::Control,
        capabilities: &[],
        families: &["AF_UNIX"],
        calls: &["@system-service"],
        purpose: "the control socket",
    },
    Needs {
        part: Part::Internet,
        capabilities: &[],
        families: &["AF_INET", "AF_INET6"],
        calls: &["@system-service"],
        purpose: "the underlay, the store and the metrics port",
    },
    Needs {
        part: Part::Overlay,
        capabilities: &[(Capability::CAP_NET_ADMIN, "no_net_admin")],
        families: &["AF_NETLINK"],
        calls: &["@system-service"],
        purpose: "the overlay device and its routes",
    },
    Needs {
        part: Part::Ring,
        capabilities: &[],
        families: &[],
        calls: &["@aio"],
        purpose: "the uring engine",
    },
    Needs {
        part: Part::LowPort,
        capabilities: &[(Capability::CAP_NET_BIND_SERVICE, "no_net_bind_service")],
        families: &[],
        calls: &[],
        purpose: "a port below 1024",
    },
    Needs {
        part: Part::Realtime,
        capabilities: &[(Capability::CAP_SYS_NICE, "no_sys_nice")],
        families: &[],
        calls: &["@system-service"],
        purpose: "real-time priority (dataplane.realtime)",
    },
    Needs {
        part: Part::FastPath,
        capabilities: &[(Capability::CAP_BPF, "no_bpf")],
        families: &[],
        calls: &["bpf"],
        purpose: "the kernel fast path (dataplane.fast_path)",
    },
];

/// The rows of these parts.
fn rows(parts: &[Part]) -> impl Iterator<Item = &'static Needs> {
    TABLE.iter().filter(move |row| parts.contains(&row.part))
}

/// Capabilities that these parts need.
fn needed(parts: &[Part]) -> CapsHashSet {
    rows(parts).flat_map(|row| row.capabilities.iter().map(|(capability, _)| *capability)).collect()
}

/// A capability that a part needs and this process does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Stable code of the error.
    pub code: &'static str,
    /// Name of the capability, such as `CAP_NET_ADMIN`.
    pub capability: String,
    /// What it is needed for.
    pub purpose: &'static str,
}

/// The first capability that these parts need and this thread does not have.
#[must_use]
pub fn missing(parts: &[Part]) -> Option<Missing> {
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    let all = rows(parts).flat_map(|row| row.capabilities.iter().map(move |need| (row, need)));
    let mut lacking = all.filter(|(_, (capability, _))| !effective.contains(capability));
    let (row, (capability, code)) = lacking.next()?;
    Some(Missing { code, capability: capability.to_string(), purpose: row.purpose })
}

/// Whether this thread may mount. The daemon needs that only before it gives up its privileges.
#[must_use]
pub fn may_mount() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Names of the capabilities that these parts need.
#[must_use]
pub fn names(parts: &[Part]) -> Vec<String> {
    let mut names: Vec<String> = needed(parts).iter().map(ToString::to_string).collect();
    names.sort();
    names
}

/// Gives up every capability that these parts do not need, for good. Neither a program that is
/// executed later nor a debugger of the same user gets more, and the process leaves no core dump.
///
/// # Errors
/// A call failed, or the process has other threads, which would keep their capabilities.
pub fn restrict(parts: &[Part]) -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
        return Err(io::Error::other("the process has threads already"));
    }
    let needed = needed(parts);
    // A process without CAP_SETPCAP cannot change its bounding set. It cannot gain anything from
    // it either: no_new_privs is set below.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(io::Error::other)? {
        retain(CapSet::Bounding, &needed)?;
    }
    // Ambient before inheritable and permitted, of which it is a part; permitted last.
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        retain(set, &needed)?;
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// Removes from a set of this thread what is not needed.
fn retain(set: CapSet, needed: &CapsHashSet) -> io::Result<()> {
    let has = caps::read(None, set).map_err(io::Error::other)?;
    let kept: CapsHashSet = has.intersection(needed).copied().collect();
    match set {
        // `caps::set` cannot change the bounding set; the kernel takes one capability at a time.
        CapSet::Bounding => {
            has.difference(needed).try_for_each(|capability| caps::drop(None, set, *capability))
        }
        CapSet::Ambient | CapSet::Inheritable | CapSet::Effective | CapSet::Permitted => {
            caps::set(None, set, &kept)
        }
    }
    .map_err(io::Error::other)
}

fn prctl(operation: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: both operations that are used here take integers and touch no memory of ours.
    match unsafe { libc::prctl(operation, value, zero, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const UNIT: &str = include_str!("../../configs/hopsack.service");
    const DROP_IN: &str = include_str!("../../configs/hopsack-fastpath.conf");
    /// What the default configuration uses.
    const DEFAULT: &[Part] = &[Part::Control, Part::Internet, Part::Overlay, Part::Ring];

    /// Words of a setting of the unit.
    fn unit(key: &str) -> BTreeSet<String> {
        words(UNIT, key)
    }

    fn words(file: &str, key: &str) -> BTreeSet<String> {
        let value = file.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let value = value.unwrap_or_else(|| panic!("the unit has no {key}"));
        value.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn unit_grants_what_the_table_says() {
        let capabilities: BTreeSet<String> = names(DEFAULT).into_iter().collect();
        assert_eq!(unit("CapabilityBoundingSet"), capabilities);
        assert_eq!(unit("AmbientCapabilities"), capabilities);
        let families: BTreeSet<String> =
            rows(DEFAULT).flat_map(|row| row.families).map(|name| (*name).to_owned()).collect();
        assert_eq!(unit("RestrictAddressFamilies"), families);
        // systemd's group @system-service contains @aio (systemd.exec(5)).
        let calls = rows(DEFAULT).flat_map(|row| row.calls).filter(|name| **name != "@aio");
        assert_eq!(unit("SystemCallFilter"), calls.map(|name| (*name).to_owned()).collect());
        assert_eq!(unit("NoNewPrivileges"), ["yes".to_owned()].into());
        assert_eq!(unit("LimitCORE"), ["0".to_owned()].into());
    }

    #[test]
    fn drop_in_grants_what_the_fast_path_needs() {
        let with_fast_path: Vec<Part> = DEFAULT.iter().copied().chain([Part::FastPath]).collect();
        let capabilities: BTreeSet<String> = names(&with_fast_path).into_iter().collect();
        // systemd adds the settings of a drop-in to those of the unit (systemd.exec(5)).
        let both = |key: &str| &unit(key) | &words(DROP_IN, key);
        assert_eq!(both("CapabilityBoundingSet"), capabilities);
        assert_eq!(both("AmbientCapabilities"), capabilities);
        let calls = rows(&with_fast_path).flat_map(|row| row.calls).filter(|name| **name != "@aio");
        assert_eq!(both("SystemCallFilter"), calls.map(|name| (*name).to_owned()).collect());
        let families = rows(&[Part::FastPath]).flat_map(|row| row.families).count();
        assert_eq!(families, 0, "the unit permits them already");
        let keys = DROP_IN.lines().filter_map(|line| Some(line.split_once('=')?.0));
        let keys: BTreeSet<&str> = keys.filter(|key| !key.starts_with('#')).collect();
        let known = ["ExecStartPre", "CapabilityBoundingSet", "AmbientCapabilities", "SystemCallFilter"];
        assert_eq!(keys, known.into());
        let mount = words(DROP_IN, "ExecStartPre");
        assert!(mount.contains("/run/hopsack/bpf") && mount.contains("nosuid,nodev,noexec,mode=0700"));
    }

    #[test]
    fn process_with_threads_is_not_restricted() {
        // The test runner has threads.
        let (_stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv().is_err());
        assert!(restrict(DEFAULT).is_err());
        drop(_stop);
        assert!(thread.join().expect("no panic"));
        let has = |set| caps::read(None, set).expect("read");
        assert_eq!(missing(&[]), None);
        assert_eq!(missing(DEFAULT).is_some(), !has(CapSet::Effective).contains(&Capability::CAP_NET_ADMIN));
    }
}
