//! Lab: a cluster of hosts on one machine, for trying, testing and measuring.
//!
//! Each host is a network namespace with a daemon and a pod. [`Lab::up`] makes a lab, and dropping
//! the [`Lab`] removes it, which tests and benches want. [`Lab::keep`] leaves it in place for later
//! processes, which find it with [`Lab::open`] and remove it with [`down`]. The program
//! `hopsack-lab` ([`cli`]) is built on these. [`traffic`] moves bytes between pods,
//! [`ping`](mod@ping) pings, [`demo`](mod@demo) shows the overlay in a minute, [`bench`](mod@bench)
//! compares it with kernel VXLAN, and [`soak`](mod@soak) checks whether an hour of traffic causes
//! errors or memory growth.
//!
//! A lab knows a daemon only as a program: its configuration file, its control socket and its exit
//! code. It does not use the daemon's modules for engines, stores or nodes.
//!
//! Invariant: a lab touches only namespaces named `hs-LAB-*`, the directory `/run/hopsack-lab/LAB`,
//! and the processes in them. It changes nothing in the machine's own network namespace. [`down`]
//! removes everything, even if the lab was only half made.

pub mod bench;
pub mod cli;
pub mod demo;
pub mod ping;
pub mod soak;
pub mod traffic;

mod cluster;
mod daemon;
mod daemon_metrics;
mod error;
mod etcd;
mod interrupt;
mod list;
mod mounts;
mod names;
mod options;
mod programs;
mod removal;
mod site;
mod state;
mod topology;

pub use cluster::Lab;
pub use daemon::Daemon;
pub use error::LabError;
pub use etcd::Etcd;
pub use interrupt::Interrupt;
pub use list::{LabSummary, list};
pub use options::{Options, Store};
pub use programs::exec;
pub use removal::{Removed, down};
pub use site::{Host, Pod};
pub use topology::MAX_HOSTS;
