//! The userspace backend: our own data path between a TUN device and UDP sockets.

mod choice;
pub(super) mod device;
mod duplicate_subnet;
pub(super) mod encryption;
mod fastpath;
mod fib_part;
mod missed;
mod paths;
mod peer_problems;
mod peer_routes;
mod prepared;
mod publisher;
mod running;
pub(super) mod sockets;
mod tun;
mod veth_pair;

pub use choice::NoRing;
pub(super) use device::desired;
pub use device::{DeviceError, is_ours_or_beside as is_own_device};
pub use encryption::EncryptionError;
pub(super) use prepared::{
    Prepared, check_credentials, check_encryption_port, check_fast_path, check_port, overhead,
};
pub(super) use running::Userspace;
pub use sockets::SocketError;
