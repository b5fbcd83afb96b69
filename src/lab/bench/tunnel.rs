//! Test tunnels for comparison: one process at each end, `hopsack-lab naive` or `hopsack-lab
//! floor`, which the bench starts and ends.
//!
//! Invariant: when a [`Tunnel`] is dropped, its process has ended and its device is removed.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use super::super::cluster::Lab;
use super::super::daemon;
use super::super::error::LabError;
use super::super::programs;
use super::super::site::Host;
use super::{floor, naive};
use crate::sys::process::{Process, own_session};

const PORT: u16 = 8443;

/// Kind of test tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Simple tunnel over QUIC.
    Naive,
    /// Tunnel that only passes packets on.
    Floor,
    /// Floor tunnel in one thread that never sleeps.
    FloorSpin,
}

impl Kind {
    /// Name, device, arguments for ip-tuntap(8), MTU.
    fn row(self) -> (&'static str, &'static str, &'static str, u16) {
        match self {
            Self::Naive => ("naive", naive::DEVICE, "mode tun", naive::MTU),
            Self::Floor | Self::FloorSpin => {
                ("floor", floor::DEVICE, "mode tun vnet_hdr multi_queue", floor::MTU)
            }
        }
    }

    pub(super) fn device(self) -> &'static str {
        self.row().1
    }

    /// Options before the peer's address for the end on host `number`. In a naive tunnel, only the
    /// second end gets an address, and connects to the first.
    fn peer(self, number: usize) -> &'static [&'static str] {
        match self {
            Self::Naive if number == 1 => &[],
            Self::Naive => &["--dial"],
            Self::Floor => &["--peer"],
            Self::FloorSpin => &["--spin", "--peer"],
        }
    }
}

/// A running end of a tunnel.
#[derive(Debug)]
pub(super) struct Tunnel {
    child: Child,
    netns: String,
    kind: Kind,
}

impl Tunnel {
    /// Starts the end on host `number`.
    pub(super) fn start(lab: &Lab, kind: Kind, number: usize, peer: &Host) -> Result<Self, LabError> {
        let (host, (name, device, mode, mtu)) = (lab.host(number), kind.row());
        let what = || LabError::io(format!("start the {name} tunnel of {}", host.name));
        let commands = format!(
            "tuntap add {device} {mode}\nlink set {device} mtu {mtu} up\nroute add {} dev {device}\n",
            peer.subnet_v4
        );
        programs::ip_batch(Some(&host.netns), &commands, false)?;
        let binary = lab.options().lab_binary.to_string_lossy().into_owned();
        let mut argv = [binary.as_str(), name, "--device", device, "--bind"].map(String::from).to_vec();
        let end = |host: &Host| SocketAddr::new(host.public, PORT).to_string();
        argv.push(end(host));
        let flags = kind.peer(number);
        if !flags.is_empty() {
            argv.extend(flags.iter().map(ToString::to_string).chain([end(peer)]));
        }
        let log = File::create(host.directory.join(format!("{name}.log"))).map_err(what())?;
        let mut command = programs::command_in(&host.netns, &argv);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(what())?).stderr(log);
        let child = own_session(&mut command).spawn().map_err(what())?;
        Ok(Self { child, netns: host.netns.clone(), kind })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let process = Process::open(self.pid()).ok();
        let _ = daemon::end_all(process.as_slice(), daemon::TERM_TIMEOUT);
        let _ = self.child.wait();
        // The route goes with the device. This fails if the lab was already removed.
        let _ = programs::ip_batch(Some(&self.netns), &format!("link del {}\n", self.kind.device()), true);
    }
}
