//! hopsack: a userspace overlay router for containers. Flannel's UDP mode, done right.
//!
//! Containers on different hosts cannot reach one another by IP. A daemon on each host reads pod packets from a TUN
//! device, puts each into a UDP datagram to the host that owns the destination's subnet, and the daemon there writes it
//! back to its TUN:
//!
//! ```text
//!  pod A ─ veth ─ bridge ─┐                                            ┌─ bridge ─ veth ─ pod B
//!                   kernel routes                                 kernel routes
//!                         │ 10.244.0.0/16                              ▲
//!                     hopsack0 (TUN)                              hopsack0 (TUN)
//!                         │ read                                       │ write
//!                  forward::egress                              forward::ingress
//!                   fib: whose is it?                           fib: may he say that?
//!                         │ send                                       │ receive
//!                    UDP 8285 ───────────── underlay ──────────── UDP 8285
//! ```
//!
//! The sentence that the code keeps true: a packet enters at a TUN queue, meets one route snapshot, leaves in one UDP
//! send: all on one thread, in one function that a person can read top to bottom. Everything else in the program exists
//! to make the right snapshot.
//!
//! # The life of a packet
//! Out: an engine reads the TUN and calls [`forward::egress`], which parses ([`packet`]), looks up ([`forward::Table`]) and
//! pushes to a peer, or drops for a counted reason and, where the RFCs ask for it, answers by ICMP. In: the engine receives
//! and calls [`forward::ingress`], which knows the sender by its outer address, checks that the inner source is his, and
//! pushes to the TUN.
//!
//! # The life of a route
//! A [`store`] tells the [`node`] what changed; the node folds it into the [`route::Rib`] and gives that to the [`backend`],
//! which compiles a [`forward::Table`] and publishes it to the engine. The store away is no event for packets.
//!
//! # Modules, in reading order
//! Each uses only what stands above it in this list (`tests/layers.rs`).
//!
//! * [`time`]: monotonic time as plain numbers. Pure.
//! * [`packet`]: bytes. Views, checksums, ICMP errors, cutting and joining of super packets. Pure.
//! * [`seal`]: sealed packets: keys, envelope, replay window. Pure.
//! * [`route`]: what we were told (RIB), what packets meet (FIB). Pure.
//! * [`forward`]: the two straight lines, the drop reasons, the counters. Pure.
//! * [`api`]: requests and answers of the control socket, as plain data. Pure.
//! * [`control`]: the control socket: server and client.
//! * [`observe`]: status, drops, explain, metrics and problems, collected from the parts below that register themselves.
//! * [`pki`]: certificates: who a node is, and whose word it takes.
//! * [`config`]: this node's configuration, in four layers.
//! * [`store`]: where the subnet-to-host map is kept.
//! * [`sys`]: the system calls; the only `unsafe`.
//! * [`netlink`]: links, addresses and routes in the kernel.
//! * [`engine`]: threads that move packets.
//! * [`quic`]: encrypted connections to other hosts, the packets in them, keys for sealed ones.
//! * [`backend`]: puts a map into effect.
//! * [`node`]: the daemon: start, one select loop, stop.
//! * [`cni`]: the CNI plugin's answers.
//! * [`lab`]: clusters of namespaces on one machine, for `hopsack lab`, tests and benches.
//! * [`cli`]: the command line.

pub mod api;
pub mod backend;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod engine;
pub mod forward;
pub mod lab;
pub mod netlink;
pub mod node;
pub mod observe;
pub mod packet;
pub mod pki;
pub mod quic;
pub mod route;
pub mod seal;
pub mod store;
pub mod sys;
pub mod time;
