//! Systems that the bench measures, one row for each.
//!
//! To measure another configuration of hopsack, add a variant and its row. No other code needs to
//! change.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::cluster::Lab;
use super::tunnel::Kind;
use super::wireguard::{self, Program};

/// System that carries packets from pod to pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// No overlay: the hosts route to the pods.
    Raw,
    /// Kernel VXLAN, configured as flannel does it.
    Vxlan,
    /// Real flanneld with the udp backend; the environment variable FLANNELD names the program.
    Flannel,
    /// hopsack with the engine simple: one packet in each system call.
    Simple,
    /// hopsack with the engine batch: plain system calls with offloads.
    Batch,
    /// hopsack with the engine uring: io_uring.
    Uring,
    /// hopsack as it is by default, with what it chooses on this machine.
    Auto,
    /// hopsack with the kernel fast path; it is not measured where the engine would carry packets.
    Fast,
    /// hopsack with the engine batch, which polls for 100 us before it sleeps.
    BatchSpin,
    /// hopsack with the engine uring, which polls for 100 us before it sleeps.
    UringSpin,
    /// hopsack with security.mode = sealed.
    Sealed,
    /// hopsack with security.mode = quic.
    Quic,
    /// wireguard-go, named by the environment variable WIREGUARD_GO or found on the PATH.
    WireguardGo,
    /// boringtun, named by the environment variable BORINGTUN or found on the PATH.
    Boringtun,
    /// Simple tunnel over QUIC, without hopsack's optimisations.
    QuinnNaive,
    /// Tunnel that only passes packets on, with the same system calls: the bound for TCP and round
    /// trips.
    Floor,
    /// The floor tunnel in one thread that never sleeps: the bound for round trips and connections.
    FloorSpin,
}

/// Way in which packets are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// Routes of the hosts.
    Raw,
    /// A VXLAN device.
    Vxlan,
    /// Two flanneld.
    Flannel,
    /// Two WireGuard programs in userspace.
    WireGuard(Program),
    /// Two ends of a test tunnel of this module.
    Tunnel(Kind),
    /// Two hopsack daemons, with this text appended to their configuration.
    Hopsack(&'static str),
}

impl System {
    /// Name, carrier, colour of the plots. The kernel's systems are grey, foreign programs red to
    /// brown, hopsack green to blue by engine and violet if it encrypts. The colours also differ in
    /// brightness.
    fn row(self) -> (&'static str, Carrier, &'static str) {
        use Carrier::Hopsack;
        match self {
            Self::Raw => ("raw", Carrier::Raw, "#b8bdc6"),
            Self::Vxlan => ("vxlan", Carrier::Vxlan, "#868d99"),
            Self::Flannel => ("flannel", Carrier::Flannel, "#b08250"),
            Self::Simple => {
                ("simple", Hopsack("[dataplane]\nfast_path = \"off\"\nengine = \"simple\"\n"), "#8fc1a9")
            }
            Self::Batch => {
                ("batch", Hopsack("[dataplane]\nfast_path = \"off\"\nengine = \"batch\"\n"), "#4a9f86")
            }
            Self::Uring => {
                ("uring", Hopsack("[dataplane]\nfast_path = \"off\"\nengine = \"uring\"\n"), "#2b7a9e")
            }
            Self::Auto => ("auto", Hopsack(""), "#5b6fc0"),
            Self::Fast => ("fast", Hopsack("[dataplane]\nfast_path = \"auto\"\n"), "#1d3f8f"),
            Self::BatchSpin => (
                "batch-spin",
                Hopsack("[dataplane]\nfast_path = \"off\"\nengine = \"batch\"\nbusy_poll_us = 100\n"),
                "#6fc7ab",
            ),
            Self::UringSpin => (
                "uring-spin",
                Hopsack("[dataplane]\nfast_path = \"off\"\nengine = \"uring\"\nbusy_poll_us = 100\n"),
                "#5aa7cc",
            ),
            Self::Sealed => ("sealed", Hopsack("[security]\nmode = \"sealed\"\n"), "#7a55a8"),
            Self::Quic => ("quic", Hopsack("[security]\nmode = \"quic\"\n"), "#a583c9"),
            Self::WireguardGo => ("wireguard-go", Carrier::WireGuard(Program::GO), "#9e4a4a"),
            Self::Boringtun => ("boringtun", Carrier::WireGuard(Program::BORINGTUN), "#c98a83"),
            Self::QuinnNaive => ("quinn-naive", Carrier::Tunnel(Kind::Naive), "#c9a9b8"),
            Self::Floor => ("floor", Carrier::Tunnel(Kind::Floor), "#5b6068"),
            Self::FloorSpin => ("floor-spin", Carrier::Tunnel(Kind::FloorSpin), "#3f434a"),
        }
    }

    /// Name, as on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().0
    }

    pub(super) fn carrier(self) -> Carrier {
        self.row().1
    }

    pub(super) fn colour(self) -> &'static str {
        self.row().2
    }

    /// Whether the system is hopsack, which has daemons with counters.
    #[must_use]
    pub fn is_hopsack(self) -> bool {
        matches!(self.carrier(), Carrier::Hopsack(_))
    }

    /// Whether the system needs etcd, for flannel's leases or for leases that announce encryption.
    pub(super) fn needs_etcd(self) -> bool {
        matches!(self, Self::Flannel | Self::Sealed | Self::Quic)
    }

    /// Device by which host `number` sends. Its MTU becomes the MTU of the pods.
    pub(super) fn device(self, lab: &Lab, number: usize) -> String {
        match self.carrier() {
            Carrier::Raw => "eth0".into(),
            Carrier::Vxlan => "flannel.1".into(),
            Carrier::Flannel => "flannel0".into(),
            Carrier::WireGuard(_) => wireguard::device(lab, number),
            Carrier::Tunnel(kind) => kind.device().into(),
            Carrier::Hopsack(_) => "hopsack0".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_has_one_name() {
        for system in System::value_variants() {
            let typed = system.to_possible_value().expect("none is hidden");
            assert_eq!(typed.get_name(), system.name());
            assert_eq!(serde_json::to_value(system).expect("a word"), system.name());
        }
    }
}
