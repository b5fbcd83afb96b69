//! What the kernel and the disk of this host should hold, as values.
//!
//! A part of the program says what it needs as rows of a [`Desired`]: links, offloads,
//! addresses, routes, sysctls and files. What is there is read into an [`Actual`]. [`diff`]
//! compares the two and returns the steps that lead from one to the other. Nothing here reads or
//! writes anything: `reconcile` does.
//!
//! A row that Desired does not name is removed only if it is ours: an address on a device of ours,
//! or a route of our protocol ([`ROUTE_PROTOCOL`]) by such a device. A device is ours if it has our
//! alias ([`ALIAS`]). A veth pair is removed only if it is ours and Desired says that it must not
//! exist.
//!
//! Invariants (property tests): the steps lead to what is desired, a second diff is empty, rows of
//! others stay as they are, and removals come last. A new veth pair takes one diff more.
#![forbid(unsafe_code)]

mod diff;
#[cfg(test)]
pub(crate) mod model;
mod rows;
mod state;
#[cfg(test)]
mod tests;

pub use diff::{Diff, Object, Obstacle, Step, Unmet, diff};
pub use rows::{ALIAS, Address, Feature, File, Link, LinkKind, Offload, ROUTE_PROTOCOL, Route, Sysctl};
pub use state::{Actual, Desired};
