//! A call to etcd that failed: what happened, and what can be done about it.
#![forbid(unsafe_code)]

use etcd_client::Error;

use crate::store::error::{ErrorCode, StoreError};

/// Numbers of gRPC status codes (`doc/statuscodes.md` in grpc/grpc).
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{endpoint}: {what}")]
pub(crate) struct Failure {
    endpoint: String,
    what: String,
    pub(crate) kind: FailureKind,
}

/// What can be done about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The endpoint does not answer. Another endpoint, or another attempt, may help.
    Unreachable,
    /// etcd refuses our user or certificate.
    Denied,
    /// etcd does not have the revision: it was compacted, or etcd was restored from a backup that
    /// is older.
    RevisionGone,
}

impl Failure {
    pub(crate) fn new(endpoint: &str, what: impl Into<String>, kind: FailureKind) -> Self {
        Self { endpoint: endpoint.to_owned(), what: what.into(), kind }
    }

    /// A failure that another attempt may repair.
    pub(crate) fn unreachable(endpoint: &str, what: impl Into<String>) -> Self {
        Self::new(endpoint, what, FailureKind::Unreachable)
    }

    /// The endpoint, and what happened there.
    pub(crate) fn parts(&self) -> (&str, &str) {
        (&self.endpoint, &self.what)
    }

    /// The failure behind an error of the etcd client.
    pub(crate) fn of(endpoint: &str, error: &Error) -> Self {
        Self::new(endpoint, innermost_cause(error), FailureKind::of(error))
    }

    /// The error that ends a start or an operator command.
    pub(crate) fn into_error(self) -> StoreError {
        let (code, text) = match self.kind {
            FailureKind::Denied => (
                ErrorCode::Denied,
                format!(
                    "etcd refuses access: {self}; check store.username, store.password_file and store.cert"
                ),
            ),
            FailureKind::Unreachable | FailureKind::RevisionGone => (
                ErrorCode::Unreachable,
                format!(
                    "cannot read the map from etcd: {self}; check that etcd runs and that store.endpoints is right"
                ),
            ),
        };
        StoreError::new(code, text)
    }
}

impl FailureKind {
    /// Decides by gRPC code, as etcd assigns them in `api/v3rpc/rpctypes/error.go`. A wrong
    /// password and a missing user name share `InvalidArgument` with unrelated errors, so only
    /// there the message decides.
    fn of(error: &Error) -> Self {
        let Error::GRpcStatus(status) = error else { return Self::Unreachable };
        let text_says = |text: &str| status.message().contains(text);
        match i32::from(status.code()) {
            OUT_OF_RANGE => Self::RevisionGone,
            PERMISSION_DENIED | UNAUTHENTICATED => Self::Denied,
            INVALID_ARGUMENT if text_says("authentication failed") || text_says("user name is empty") => {
                Self::Denied
            }
            _ => Self::Unreachable,
        }
    }
}

/// Text of the innermost cause. The outer errors only say that there was one.
fn innermost_cause(error: &Error) -> String {
    let (mut text, mut cause) = (error.to_string(), None);
    if let Error::GRpcStatus(status) = error {
        (text, cause) = (status.message().to_owned(), std::error::Error::source(status));
    } else if let Error::TransportError(error) = error {
        cause = std::error::Error::source(error);
    }
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text.trim_start_matches("etcdserver: ").replace('\n', ", ")
}
