//! hopsack: an overlay network for containers, as Flannel's UDP mode has it, but fast.
//!
//! Containers on different hosts cannot reach one another by IP. A daemon on each host reads pod
//! packets from a TUN device and puts each into a UDP datagram to the host that owns the
//! destination's subnet. The daemon there writes the packet to its TUN device:
//!
//! ```text
//!  pod A ─ veth ─ bridge ─┐                                            ┌─ bridge ─ veth ─ pod B
//!                   kernel routes                                 kernel routes
//!                         │ 10.244.0.0/16                              ▲
//!                     hopsack0 (TUN)                              hopsack0 (TUN)
//!                         │ read                                       │ write
//!                  forward::egress                              forward::ingress
//!              which host owns the subnet?              does the source belong to the sender?
//!                         │ send                                       │ receive
//!                    UDP 8285 ───────────── underlay ──────────── UDP 8285
//! ```
//!
//! The code keeps two sentences true:
//!
//! * Data: a packet enters at a TUN queue, is looked up in one route snapshot, and leaves in one
//!   UDP send: on one thread, in one function that a person can read from top to bottom.
//! * Control: every part computes what should be, and one loop compares it with what is and repairs
//!   the difference.
//!
//! # Life of a packet
//! Egress: an engine reads the TUN device and calls [`forward::egress`]. It parses the packet
//! ([`packet`]), looks up the destination ([`forward::Table`]), and appends the packet to the
//! datagrams for a peer. Or it drops the packet for a counted reason, and answers by ICMP where the
//! RFCs require it. Ingress: the engine receives datagrams and calls [`forward::ingress`]. It finds
//! the peer by the outer source address, checks that the inner source belongs to this peer, and
//! appends the packet to what is written to the TUN device.
//!
//! # Life of a route
//! A [`store`] reports changes of the map to the [`node`]. The node applies them to the
//! [`route::Rib`] and passes that to the [`backend`], which compiles a [`forward::Table`] and
//! publishes it to the engine. An outage of the store does not interrupt forwarding: the last map
//! stays in use.
//!
//! # Modules, in reading order
//! Each uses only what stands above it in this list (`tests/layers.rs`).
//!
//! * [`time`]: monotonic time as plain numbers. Pure.
//! * [`packet`]: packets as bytes: views, checksums, ICMP errors, splitting and merging. Pure.
//! * [`seal`]: sealed packets: keys, envelope, replay window. Pure.
//! * [`route`]: what the store has told us (RIB), and what packets meet (FIB). Pure.
//! * [`forward`]: the two straight lines, the drop reasons, the counters. Pure.
//! * [`desired`]: what the kernel should hold, and the steps that lead there. Pure.
//! * [`api`]: requests and answers of the control socket, as plain data. Pure.
//! * [`control`]: the control socket: server and client.
//! * [`observe`]: status, drops, explain, metrics and problems, collected from the parts that
//!   register themselves.
//! * [`pki`]: certificates, which identify hosts.
//! * [`config`]: this host's configuration, in four layers.
//! * [`store`]: the map from subnets to hosts, in etcd or in a file.
//! * [`sys`]: system calls; the only module with `unsafe`.
//! * [`netlink`]: links, addresses and routes in the kernel.
//! * [`reconcile`]: keeps the kernel and our files as desired.
//! * [`engine`]: threads that move packets.
//! * [`quic`]: encrypted connections, which carry packets and make keys for sealed ones.
//! * [`backend`]: puts a map into effect.
//! * [`node`]: the daemon: start, one select loop, stop.
//! * [`cni`]: the answers of the CNI plugin.
//! * [`lab`]: clusters of network namespaces on one machine, for trying, tests and benches.
//! * [`cli`]: the command line.

pub mod api;
pub mod backend;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod desired;
pub mod engine;
pub mod forward;
pub mod lab;
pub mod netlink;
pub mod node;
pub mod observe;
pub mod packet;
pub mod pki;
pub mod quic;
pub mod reconcile;
pub mod route;
pub mod seal;
pub mod store;
pub mod sys;
pub mod time;
