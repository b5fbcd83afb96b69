//! Routes in a router's two senses: the [`Rib`] holds what the store has told us, the [`Fib`] is
//! the map in which a packet's destination is looked up.
//!
//! A [`Lease`] says that a host owns subnets. A [`Change`] is all that passes from a store to the
//! node. [`Rib::apply`] applies changes, and [`compile()`] turns the result into an immutable
//! [`Fib`] and the list of its hosts.
//!
//! Nothing here knows a store, a clock, a socket, a thread or a key. What changes without a change
//! of routes (keys, path MTUs) is in `forward::Peers`.
//!
//! Invariant: for any order and repetition of deliveries, a RIB ends in the state of a fresh list
//! at the highest revision that it has seen (property test `rib_equals_a_fresh_list`).
#![forbid(unsafe_code)]

mod abilities;
mod address;
mod adjacency;
mod change;
mod compile;
mod encryption_policy;
mod fib;
mod fingerprint;
mod lease;
mod local;
mod networks;
mod overlap;
mod prefix_table;
mod remark;
mod rib;
mod unfit;
mod unreachable;

pub use abilities::Abilities;
pub use adjacency::Adjacency;
pub use change::{Change, Event};
pub use compile::{Compiled, compile};
pub use encryption_policy::{Announced, Mode, Policy, Protection};
pub use fib::{Fib, Target};
pub use fingerprint::Fingerprint;
pub use lease::{Dialect, Lease, Origin, Public};
pub use local::Local;
pub use networks::Networks;
pub use remark::{Remark, RemarkKind};
pub use rib::Rib;
pub use unfit::{Unfit, unfit, unfit_in};
pub use unreachable::{Unreachable, UnreachableReason};
