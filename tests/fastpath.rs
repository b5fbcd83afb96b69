//! The kernel fast path: the program against `forward`, and two hosts that have only the program.
//!
//! The tests need root, a kernel with tcx links (6.6), and `ip`, `ping` and `ethtool`.
#![allow(unreachable_pub)]

#[path = "fastpath/carried.rs"]
mod carried;
#[path = "fastpath/differential.rs"]
mod differential;
#[path = "fastpath/forged.rs"]
mod forged;
#[path = "fastpath/gro.rs"]
mod gro;
#[path = "fastpath/off.rs"]
mod off;
#[path = "fastpath/oracle.rs"]
mod oracle;
#[path = "fastpath/pair.rs"]
mod pair;
mod support;
