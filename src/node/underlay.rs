//! The underlay: the interface and the address by which other hosts reach this one, at the start
//! and while the node runs.

mod error;
mod find;
mod follow;
mod link;
mod public_address;

pub(super) use error::UnderlayError;
pub(super) use find::{Underlay, find, follow_routes};
pub(super) use link::report_link;
pub(super) use public_address::PublicAddress;
