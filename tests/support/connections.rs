//! Attack tool: many connections to a listening socket that send nothing.
#![allow(dead_code, unreachable_pub)]

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hopsack::sys::netns::in_netns;

/// Longest time until the kernel takes a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Opens TCP connections from inside a namespace. They stay open until the list is dropped.
pub fn idle_tcp(netns: &str, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = move || (0..count).map(|_| TcpStream::connect_timeout(&to, CONNECT)).collect();
    let connected: io::Result<Vec<TcpStream>> = in_netns(netns, connect).expect("netns");
    connected.expect("each connection is taken, or refused at once")
}

/// Opens connections to a unix socket. They stay open until the list is dropped.
pub fn idle_unix(path: &Path, count: usize) -> Vec<UnixStream> {
    (0..count).map(|_| UnixStream::connect(path).expect("the connection is taken")).collect()
}
