//! The QUIC endpoint: it holds encrypted connections to other hosts and carries packets in them.
//!
//! A host has one endpoint, on a UDP port of its own. It uses mutual TLS 1.3 and the ALPN
//! `hopsack/1`. Workers hand over packets for peers without a usable key through the engine's
//! [`SlowPathQueue`](crate::engine::SlowPathQueue). The endpoint sends them as unreliable DATAGRAM
//! frames (RFC 9221). Packets that arrive in such frames go to the overlay device through a
//! [`SlowPathWriter`](crate::engine::SlowPathWriter). Where both hosts seal, the same handshake
//! authenticates them and yields the keys ([`crate::seal`]). The connection then carries only the
//! packets for which there is no key yet.
//!
//! The parts, in the order in which a packet passes through them:
//! - `endpoint`: the thread, its runtime, and the handle by which the node controls it
//! - `state`: what all tasks of the thread share
//! - `queue`, `peer`: packets that wait for one peer, and its connections
//! - `connect`, `numbering`, `backoff`: dialling, answering, authentication, and retries
//! - `admission`, `handshakes`: which attempts are answered, and the thread that makes handshakes
//! - `datagrams`, `connection`: packets into a connection and out of it, each counted once
//! - `congestion`: leaves congestion control to the transports inside the tunnel
//! - `socket`: joins the datagrams that quinn sends into trains
//! - `keys`: agrees on the keys for sealed packets
//! - `lifecycle`, `maintenance`: what changes connections while the daemon runs
//! - `shown`: whether certificates that were shown still belong to their peers
//! - `status`, `observe`: what operators see
//!
//! There is one connection to each peer, and one thread for the packets of all of them. On the
//! machine that was measured (two CPUs, benches/README.md) one connection keeps both CPUs busy.
//! With more CPUs, several connections would carry more.
//!
//! The thread has a runtime of its own. AES and packets can keep a CPU busy, and must not delay
//! the store's watch, the control socket and the watchdog, which share the main runtime.
//!
//! The endpoint does not decide which peers exist: it reads the FIB. Invariant: it exchanges
//! packets with a host only if that host's certificate is the one of the lease at its address, and
//! no packet waits longer than `peer::MAX_WAIT` for a connection.
//!
//! Sources: RFC 9000 (QUIC), RFC 9001 (its TLS), RFC 9221 (datagrams), RFC 8446 section 7.5
//! (exporters).
#![forbid(unsafe_code)]

mod admission;
mod backoff;
mod close_reason;
mod congestion;
mod connect;
mod connection;
mod datagrams;
mod endpoint;
mod error;
mod event;
mod handshake_error;
mod handshakes;
mod keys;
mod lifecycle;
mod maintenance;
mod numbering;
mod observe;
mod options;
mod overhead;
mod peer;
mod queue;
mod shown;
mod socket;
mod state;
mod status;
mod tls;
mod warning_limit;

pub use endpoint::Quic;
pub use error::QuicError;
pub use event::QuicEvent;
pub use handshake_error::HandshakeError;
pub use observe::QuicPart;
pub use options::QuicOptions;
pub use overhead::OVERHEAD_BYTES;
pub use status::{QuicCounts, QuicPeerStatus, QuicStatus};
pub use tls::check_port;
