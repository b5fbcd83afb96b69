//! rtnetlink: reads and changes links, addresses and routes. The only module that names the crate.
//!
//! A [`Netlink`] belongs to the network namespace of the thread that made it. It reads and applies
//! single changes; which changes are needed is decided by `desired`. [`Monitor`] tells which
//! objects the kernel has changed.
//!
//! Invariant: a removal names one object exactly as a dump has shown it, so nothing else can go
//! with it.

mod address;
mod connection;
mod error;
mod link;
mod monitor;
mod route;

pub use address::{Address, Detection};
pub use connection::Netlink;
pub use error::NetlinkError;
pub use link::Link;
pub use monitor::{Monitor, Notice};
pub use route::{NextHop, Route, Way};
