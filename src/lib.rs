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
//! Each module uses only modules that stand above it in this list (`tests/layers.rs`). A pure
//! module uses no clock, file, socket, thread or log.
//!
//! * [`time`] represents points of monotonic time as plain numbers. Pure.
//! * [`packet`] reads and writes packets as bytes: views, checksums, ICMP errors, splitting and
//!   merging. Pure.
//! * [`seal`] encrypts packets for a peer and opens its packets: keys, envelope, replay window.
//!   Pure.
//! * [`route`] holds what the store has told us (RIB), and compiles it into the map in which
//!   packets are looked up (FIB). Pure.
//! * [`forward`] decides for each packet where it goes or why it is dropped, and counts it. Pure.
//! * [`desired`] describes what the kernel should hold, and finds the steps that lead there. Pure.
//! * [`api`] defines the requests and answers of the control socket as plain data. Pure.
//! * [`files`] writes whole files, and reads secrets, which must be private.
//! * [`control`] is the control socket, both server and client.
//! * [`observe`] collects status, drops, explain, metrics and problems from the parts that register
//!   themselves.
//! * [`pki`] makes and checks the certificates that identify hosts.
//! * [`config`] reads this host's configuration from defaults, file, environment and command line.
//! * [`store`] reads and writes the map from subnets to hosts, in etcd or in a file.
//! * [`sys`] makes system calls; it is the only module with `unsafe`.
//! * [`netlink`] reads and changes links, addresses and routes in the kernel.
//! * [`fastpath`] loads the kernel program that forwards plain packets, and writes its maps.
//! * [`reconcile`] keeps the kernel and our files as desired.
//! * [`engine`] runs the threads that move packets.
//! * [`quic`] holds encrypted connections, which carry packets and make keys for sealed ones.
//! * [`backend`] puts a map into effect.
//! * [`node`] is the daemon: it starts all parts, runs one select loop, and stops.
//! * [`cni`] answers the calls of the CNI plugin.
//! * [`lab`] builds clusters of network namespaces on one machine, for trying, tests and benches.
//! * [`cli`] is the command line.

pub mod api;
pub mod backend;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod desired;
pub mod engine;
pub mod fastpath;
pub mod files;
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
