//! Problems: conditions that the daemon cannot repair by itself, each with a stable code.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kind of a [`Problem`]. The codes are stable; alerts and scripts may depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// The store cannot be read. The last good map stays in use.
    StoreUnavailable,
    /// The public address of this host is no longer usable on the underlay interface.
    UnderlayAddress,
    /// The MTU of the underlay does not leave enough room for the overlay.
    UnderlayMtu,
    /// The underlay interface is down or has no carrier.
    UnderlayLink,
    /// A packet filter of this host (EPERM), or a peer, refuses the daemon's datagrams.
    SendRefused,
    /// Another host sends packets with a source address in this host's own subnet.
    DuplicateSubnet,
    /// The certificate cannot be loaded again. The one in use stays in use.
    Certificate,
    /// The path to a peer is too narrow for IPv6, and QUIC cannot fragment.
    NarrowPath,
    /// The QUIC socket cannot move to a new address of this host. The move is tried again.
    QuicSocket,
    /// A peer's certificate does not belong to it or to its subnets: it gets no packets.
    PeerCertificate,
    /// A peer does not answer keep-alives.
    PeerSilent,
    /// Datagrams of peers' kernel fast paths reach the daemon, because our own does not take them.
    FastMissed,
    /// An object that the daemon maintains differs from what it should be, and the repair failed.
    RepairFailed,
    /// The same object had to be repaired several times: another program probably changes it.
    RepairRepeated,
    /// A lease contradicts another one: their subnets overlap, or one address announces two kinds
    /// of protection.
    LeaseConflict,
    /// A key among the leases is invalid and is ignored.
    LeaseInvalid,
    /// A lease is in use, and something about it is unusual.
    LeaseUnusual,
    /// The daemon is newer than this program, which does not know the code.
    #[serde(other)]
    Unknown,
}

impl ProblemCode {
    /// The code as it appears in JSON, logs and metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::StoreUnavailable => "store_unavailable",
            Self::UnderlayAddress => "underlay_address",
            Self::UnderlayMtu => "underlay_mtu",
            Self::UnderlayLink => "underlay_link",
            Self::SendRefused => "send_refused",
            Self::DuplicateSubnet => "duplicate_subnet",
            Self::Certificate => "certificate",
            Self::NarrowPath => "narrow_path",
            Self::QuicSocket => "quic_socket",
            Self::PeerCertificate => "peer_certificate",
            Self::PeerSilent => "peer_silent",
            Self::FastMissed => "fast_missed",
            Self::RepairFailed => "repair_failed",
            Self::RepairRepeated => "repair_repeated",
            Self::LeaseConflict => "lease_conflict",
            Self::LeaseInvalid => "lease_invalid",
            Self::LeaseUnusual => "lease_unusual",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A condition that lasts and that the daemon cannot repair by itself. Forwarding goes on
/// meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Kind of the problem.
    pub code: ProblemCode,
    /// Name of the affected thing: an interface, a file, a subnet, a store.
    pub object: String,
    /// What is wrong and how to fix it, as one sentence. The sentence may change while the problem
    /// lasts.
    pub cause: String,
    /// Seconds since the problem began.
    pub since_seconds: u64,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.object, self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::ProblemCode;

    #[test]
    fn label_is_the_json_code() {
        use ProblemCode::{
            Certificate, DuplicateSubnet, FastMissed, LeaseConflict, LeaseInvalid, LeaseUnusual, NarrowPath,
            PeerCertificate, PeerSilent, QuicSocket, RepairFailed, RepairRepeated, SendRefused,
            StoreUnavailable, UnderlayAddress, UnderlayLink, UnderlayMtu, Unknown,
        };
        for code in [
            StoreUnavailable,
            UnderlayAddress,
            UnderlayMtu,
            UnderlayLink,
            SendRefused,
            DuplicateSubnet,
            Certificate,
            NarrowPath,
            QuicSocket,
            PeerCertificate,
            PeerSilent,
            FastMissed,
            RepairFailed,
            RepairRepeated,
            LeaseConflict,
            LeaseInvalid,
            LeaseUnusual,
            Unknown,
        ] {
            assert_eq!(serde_json::to_value(code).expect("a string"), code.label());
        }
    }

    #[test]
    fn code_of_a_newer_daemon_is_unknown() {
        let code: ProblemCode = serde_json::from_str("\"solar_flare\"").expect("any string is accepted");
        assert_eq!(code, ProblemCode::Unknown);
    }
}
