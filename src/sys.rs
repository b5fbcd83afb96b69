//! System calls that no library makes safely: the only module with `unsafe`, the probe of what this
//! process can do, and the table of what it needs.
//!
//! Each function makes one call and returns its error. The callers decide what to do about an
//! error.
//!
//! Invariant: no function here is `unsafe` to call; each `unsafe` block names what makes it sound
//! and which code upholds it.

pub mod batch;
pub mod bpf;
mod capabilities;
mod clock;
mod cmsg;
pub mod cpu;
pub mod epoll;
pub mod ethtool;
mod event;
pub mod netns;
mod pacing;
mod poll;
mod privileges;
pub mod process;
pub mod ring;
pub mod sched;
pub mod tun;
pub mod udp;

pub use capabilities::Capabilities;
pub use clock::now;
pub use event::Event;
pub use pacing::limit_rate;
pub use poll::{Interest, poll};
pub use privileges::{Missing, Needs, Part, TABLE, may_mount, missing, names, restrict};
