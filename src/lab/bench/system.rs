//! The systems that are measured, and what the bench has to know of each: one row a system.
//!
//! To measure another configuration of hopsack, add a variant and its row; nothing else asks which system it is.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::cluster::Lab;
use super::tunnel::Kind;
use super::wireguard::{self, Program};

/// What carries packets from pod to pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// No overlay: the underlay routes to the pods.
    Raw,
    /// The kernel's VXLAN, set up as flannel does.
    Vxlan,
    /// A real flanneld's udp backend, from the environment variable FLANNELD.
    Flannel,
    /// hopsack, one packet a system call.
    Simple,
    /// hopsack, plain system calls with offloads.
    Batch,
    /// hopsack, io_uring.
    Uring,
    /// hopsack, the engine that it chooses by itself here.
    Auto,
    /// batch, which polls for 100 us before it sleeps.
    BatchSpin,
    /// uring, which polls for 100 us before it sleeps.
    UringSpin,
    /// hopsack, the engine that it chooses, packets sealed.
    Sealed,
    /// hopsack, the engine that it chooses, packets in QUIC.
    Quic,
    /// wireguard-go, from the environment variable WIREGUARD_GO or the path.
    WireguardGo,
    /// boringtun, from the environment variable BORINGTUN or the path.
    Boringtun,
    /// A tunnel over QUIC without anything that hopsack does beside it.
    QuinnNaive,
    /// A daemon that only passes on, by the same system calls: the bound of what hopsack can reach for TCP and round trips.
    Floor,
    /// The same, which never sleeps: for round trips and connections.
    FloorSpin,
}

/// How packets are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// The hosts' own routes.
    Raw,
    /// A vxlan device.
    Vxlan,
    /// Two flannelds.
    Flannel,
    /// Two WireGuards in userspace.
    WireGuard(Program),
    /// Two ends of a tunnel that is here for comparison.
    Tunnel(Kind),
    /// Two hopsacks, with this appended to their configuration.
    Hopsack(&'static str),
}

impl System {
    /// Name, carrier, colour. The kernel's systems are grey, others red to brown, ours green to blue by engine and violet if
    /// encrypted; told apart by brightness too.
    fn row(self) -> (&'static str, Carrier, &'static str) {
        use Carrier::Hopsack;
        match self {
            Self::Raw => ("raw", Carrier::Raw, "#b8bdc6"),
            Self::Vxlan => ("vxlan", Carrier::Vxlan, "#868d99"),
            Self::Flannel => ("flannel", Carrier::Flannel, "#b08250"),
            Self::Simple => ("simple", Hopsack("[dataplane]\nengine = \"simple\"\n"), "#8fc1a9"),
            Self::Batch => ("batch", Hopsack("[dataplane]\nengine = \"batch\"\n"), "#4a9f86"),
            Self::Uring => ("uring", Hopsack("[dataplane]\nengine = \"uring\"\n"), "#2b7a9e"),
            Self::Auto => ("auto", Hopsack(""), "#5b6fc0"),
            Self::BatchSpin => {
                ("batch-spin", Hopsack("[dataplane]\nengine = \"batch\"\nbusy_poll_us = 100\n"), "#6fc7ab")
            }
            Self::UringSpin => {
                ("uring-spin", Hopsack("[dataplane]\nengine = \"uring\"\nbusy_poll_us = 100\n"), "#5aa7cc")
            }
            Self::Sealed => ("sealed", Hopsack("[security]\nmode = \"sealed\"\n"), "#7a55a8"),
            Self::Quic => ("quic", Hopsack("[security]\nmode = \"quic\"\n"), "#a583c9"),
            Self::WireguardGo => ("wireguard-go", Carrier::WireGuard(Program::GO), "#9e4a4a"),
            Self::Boringtun => ("boringtun", Carrier::WireGuard(Program::BORINGTUN), "#c98a83"),
            Self::QuinnNaive => ("quinn-naive", Carrier::Tunnel(Kind::Naive), "#c9a9b8"),
            Self::Floor => ("floor", Carrier::Tunnel(Kind::Floor), "#5b6068"),
            Self::FloorSpin => ("floor-spin", Carrier::Tunnel(Kind::FloorSpin), "#3f434a"),
        }
    }

    /// As on the command line.
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

    /// Whether it is ours: daemons with counters.
    #[must_use]
    pub fn is_hopsack(self) -> bool {
        matches!(self.carrier(), Carrier::Hopsack(_))
    }

    /// Whether its daemons need an etcd: Flannel's lease lies there, and an identity is announced in the lease.
    pub(super) fn needs_etcd(self) -> bool {
        matches!(self, Self::Flannel | Self::Sealed | Self::Quic)
    }

    /// The device that a host, by its number in the lab, sends by. Its MTU is what the system leaves to the pods.
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
    fn a_system_has_one_name_everywhere() {
        for system in System::value_variants() {
            let typed = system.to_possible_value().expect("none is hidden");
            assert_eq!(typed.get_name(), system.name());
            assert_eq!(serde_json::to_value(system).expect("a word"), system.name());
        }
    }
}
