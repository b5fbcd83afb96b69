//! The connection to the kernel.

use super::error::NetlinkError;

/// A netlink connection in one network namespace.
#[derive(Debug, Clone)]
pub struct Netlink {
    pub(super) handle: rtnetlink::Handle,
}

impl Netlink {
    /// Connects, in the namespace of the calling thread. It needs a tokio runtime, which then
    /// drives the connection.
    pub fn new() -> Result<Self, NetlinkError> {
        // With strict checks (Linux 4.20) the kernel filters a dump: of a million routes it lists
        // ours only.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .or_else(|_| rtnetlink::new_connection())
            .map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }
}
