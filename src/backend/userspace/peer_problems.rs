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
use crate::route::Protection;

/// All problems, by kind: name and sentence of each peer that has one. A packet filter of this host
/// is one problem of the host, and is not listed here.
pub(super) fn list(
    table: &Table,
    health: &BTreeMap<IpAddr, PathHealth>,
) -> Vec<(ProblemCode, Vec<(String, String)>)> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    table.peers().iter().for_each(|peer| *names.entry(&peer.name).or_default() += 1);
    // Two hosts may have one name.
    let object = |peer: &Peer| match names.get(peer.name.as_str()) {
        Some(2..) => format!("{} ({})", peer.name, peer.endpoint.ip()),
        _ => peer.name.clone(),
    };
    let of = |sentence: &dyn Fn(&Peer) -> Option<String>| {
        let peers = table.peers().iter();
        peers.filter_map(|peer| Some((object(peer), sentence(peer)?))).collect()
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

/// That the peer does not answer. Where datagrams are refused, that is the cause.
fn silent(peer: &Peer, path: PathHealth) -> Option<String> {
    let name = &peer.name;
    path.silent_for.filter(|_| path.refused.is_none())?;
    let port = blocked_port(peer);
    Some(match is_by_connection(peer) {
        false => format!("{name} does not answer: UDP {port} may be blocked on the way"),
        true => format!("there is no encrypted connection to {name}: UDP {port} may be blocked on the way"),
    })
}

/// For how long the peer has not answered.
pub(super) fn silent_since(peer: &Peer, path: PathHealth) -> Option<String> {
    let name = &peer.name;
    if path.is_unheard {
        return Some(format!("{name} has not answered yet"));
    }
    let (seconds, port) = (path.silent_for?.as_secs(), blocked_port(peer));
    Some(match is_by_connection(peer) {
        false => format!("{name} has not answered for {seconds} s: UDP {port} may be blocked on the way"),
        true => format!(
            "there has been no encrypted connection to {name} for {seconds} s: UDP {port} may be blocked on the way"
        ),
    })
}

/// Whether packets to the peer need an encrypted connection at this moment.
fn is_by_connection(peer: &Peer) -> bool {
    peer.protection != Protection::Clear && !peer.can_seal()
}

/// The port that may be blocked if the peer does not answer.
fn blocked_port(peer: &Peer) -> u16 {
    let quic = peer.abilities.secure.filter(|_| is_by_connection(peer)).map(|secure| secure.port);
    quic.unwrap_or(peer.endpoint.port())
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
