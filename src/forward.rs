//! Forwarding: the two functions that every engine calls for each packet, and the counters that
//! they keep.
//!
//! [`egress()`] takes what a TUN read delivered and pushes it towards a peer. [`ingress()`] takes
//! what a UDP receive delivered and pushes it towards the TUN. Each packet ends in exactly one
//! place: it is pushed, or it is counted under a [`DropReason`]. Packets leave through [`ToNet`]
//! and [`ToTun`], which the engines implement with system calls or rings. Both functions read one
//! [`Table`]: the prefixes of a [`Fib`](crate::route::Fib), and the [`Peers`] that they lead to.
//!
//! Nothing here knows a descriptor, a clock, a thread or a log, and nothing allocates after
//! construction.
//!
//! Invariant, per direction: `packets in = packets out + sum of drops`, once the engine has counted
//! the packets that the kernel accepted and refused.
#![forbid(unsafe_code)]

mod account;
mod admit;
mod bulk;
mod counter;
mod drops;
mod egress;
mod frame;
mod ingress;
mod last_seen;
mod output;
mod path_mtu;
mod path_search;
mod peers;
mod sessions;
mod table;
mod traffic;
mod train_meta;

pub use account::{Counters, Direction};
pub use admit::{VerifySource, admit_authenticated};
pub use bulk::MIN_BULK_BYTES;
pub use counter::Counter;
pub use drops::DropReason;
pub use egress::{EgressState, egress};
pub use frame::Frame;
pub use ingress::{Arrival, IngressState, ingress};
pub use last_seen::LastSeen;
pub use output::{Exit, Reservation, ToNet, ToTun};
pub use path_mtu::{PathLimits, PathSource};
pub use path_search::{PathSearch, ProbePart};
pub use peers::{Peer, Peers};
pub use sessions::Sessions;
pub use table::{Hop, Table};
pub use traffic::Traffic;
pub use train_meta::TrainMeta;

pub use crate::packet::Train;

#[cfg(test)]
mod tests;
