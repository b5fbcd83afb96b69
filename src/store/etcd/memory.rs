//! An etcd in memory, for tests in virtual time.
//!
//! It has what the store relies on: revisions, guarded writes, leases that expire in tokio's time,
//! watches that begin at any revision, compaction, and backups that are restored. Each client (a
//! host, by the name in its settings) has a [`Link`] of its own, which a test can cut and restore.
//! Every call yields once, so that tasks that run "at the same time" really interleave.
//!
//! # How to use it
//! ```ignore
//! #[tokio::test(start_paused = true)]
//! async fn example() {
//!     let etcd = MemoryEtcd::new();
//!     etcd.put("/coreos.com/network/config", r#"{"Network":"10.1.0.0/16"}"#);
//!     let dir = tempfile::tempdir().expect("a folder");
//!     let settings = etcd.settings("host1", dir.path());
//!     let address = [192, 0, 2, 1].into();
//!     let (mut store, opened) = Store::open_memory(&etcd, &settings, &[address]).await.unwrap();
//!     etcd.set_link("host1", Link::Refused);               // an outage, for this host only
//!     tokio::time::sleep(Duration::from_secs(3600)).await; // takes no real time
//!     etcd.set_link("host1", Link::Up);
//! }
//! ```
//! `start_paused` makes tokio's clock jump to the next timer whenever all tasks wait. Two control
//! planes are two stores on one `MemoryEtcd`, with different names, folders and addresses. A store
//! is polled through [`Store::next`] as the node does; its agent runs in a task of its own.
//!
//! [`Store::next`]: crate::store::Store::next
#![forbid(unsafe_code)]

mod data;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use server::{Link, MemoryEtcd};
pub(crate) use session::{MemoryEndpoints, MemorySession, MemoryWatch};
