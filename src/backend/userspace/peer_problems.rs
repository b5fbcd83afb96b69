//! Problems with the paths to single peers, as sentences.
//!
//! It learns nothing: the table and the health of the paths say what is wrong.
//!
//! Invariant: a sentence has no number that grows while the problem lasts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::paths::PathHealth;
use crate::api::ProblemCode;
use crate::forward::{Peer, Table};
use crate::packet::Family;

/// All problems, by kind: name and sentence of each peer that has one. A packet filter of this host
/// is one problem of the host, and is not listed here.
pub(super) fn list(
    table: &Table,
    health: &BTreeMap<IpAddr, PathHealth>,
) -> Vec<(ProblemCode, Vec<(String, String)>)> {
    let of = |sentence: &dyn Fn(&Peer) -> Option<String>| {
        let peers = table.peers().iter();
        peers.filter_map(|peer| Some((peer.name.clone(), sentence(peer)?))).collect()
    };
    let is_far = |path: &PathHealth| path.refused != Some(libc::EPERM);
    let path = |peer: &Peer| health.get(&peer.endpoint.ip()).copied();
    vec![
        (ProblemCode::NarrowPath, of(&narrow_path)),
        (ProblemCode::PeerSilent, of(&|peer| silent(peer, path(peer)?))),
        (ProblemCode::SendRefused, of(&|peer| refused(peer, path(peer).filter(is_far)?))),
    ]
}

/// Why the peer gets no IPv6.
pub(super) fn narrow_path(peer: &Peer) -> Option<String> {
    peer.narrow_reason(Family::V6).map(|reason| format!("{} gets no IPv6: {reason}", peer.name))
}

/// That the peer does not answer.
pub(super) fn silent(peer: &Peer, path: PathHealth) -> Option<String> {
    let (name, port) = (&peer.name, peer.endpoint.port());
    path.silent_for.map(|_| format!("{name} does not answer: UDP {port} may be blocked on the way"))
}

/// For how long the peer has not answered.
pub(super) fn silent_since(peer: &Peer, path: PathHealth) -> Option<String> {
    let seconds = path.silent_for?.as_secs();
    let (name, port) = (&peer.name, peer.endpoint.port());
    Some(format!("{name} has not answered for {seconds} s: UDP {port} may be blocked on the way"))
}

/// Why datagrams to the peer are refused.
pub(super) fn refused(peer: &Peer, path: PathHealth) -> Option<String> {
    let name = &peer.name;
    Some(match path.refused? {
        libc::EPERM => {
            format!("the packet filter of this host refuses datagrams to {name}: allow UDP {}", peer.endpoint)
        }
        libc::ECONNREFUSED => format!(
            "{name} answers with \"port unreachable\": no hopsack runs there, or its packet filter refuses UDP {}",
            peer.endpoint.port()
        ),
        errno => format!(
            "datagrams to {} are refused: {}",
            peer.endpoint,
            std::io::Error::from_raw_os_error(errno)
        ),
    })
}
