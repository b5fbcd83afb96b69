//! What is known about a train before it is written.
#![forbid(unsafe_code)]

use super::peers::Peer;
use crate::packet::ecn::Ecn;

/// Size and ECN field of a train that will be written and sent.
#[derive(Debug, Clone, Copy)]
pub struct TrainMeta {
    /// Bytes of all packets.
    pub bytes: usize,
    /// Bytes of each packet; the last may be shorter.
    pub stride: usize,
    /// ECN field of the packets, for the outer header if the peer reads it.
    pub ecn: Ecn,
}

impl TrainMeta {
    /// The outer ECN field for datagrams to `peer`: a copy of the inner field (the normal mode of
    /// RFC 6040), or Not-ECT (its compatibility mode).
    #[must_use]
    #[inline]
    pub fn outer_ecn(&self, peer: &Peer) -> Ecn {
        if peer.abilities.ecn { self.ecn } else { Ecn::NotEct }
    }
}
