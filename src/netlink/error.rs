//! Why a request to the kernel failed.

/// Why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket can be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// A request failed.
    #[error("cannot {what}: {error}")]
    Request {
        /// The request, as a verb with its object.
        what: String,
        /// The kernel's answer.
        error: rtnetlink::Error,
    },
}

/// Turns the crate's error into ours, with the request that failed.
pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    let what = what.into();
    move |error| NetlinkError::Request { what, error }
}
