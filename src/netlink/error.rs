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

impl NetlinkError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Open(_) => "netlink_open",
            Self::Request { .. } => "netlink_request",
        }
    }
}

impl NetlinkError {
    /// Error number of the kernel's answer, if the kernel answered.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let Self::Request { error: rtnetlink::Error::NetlinkError(message), .. } = self else { return None };
        message.to_io().raw_os_error()
    }
}

/// Turns the crate's error into ours, with the request that failed.
pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    let what = what.into();
    move |error| NetlinkError::Request { what, error }
}
