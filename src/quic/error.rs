//! Why the endpoint cannot start, or cannot take a new certificate.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;

/// A step that failed while the endpoint was set up.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The UDP port is not available.
    #[error("cannot bind UDP {address} for QUIC: {source}; set security.port to a free port")]
    Bind {
        /// Address and port of the socket.
        address: SocketAddr,
        /// Error from the kernel.
        source: io::Error,
    },
    /// The bound socket cannot be used by the runtime.
    #[error("cannot use UDP {address} for QUIC: {source}")]
    Socket {
        /// Address and port of the socket.
        address: SocketAddr,
        /// Error from the kernel.
        source: io::Error,
    },
    /// The underlay's MTU is outside of what QUIC allows.
    #[error("QUIC cannot use UDP payloads of {bytes} bytes: {source}")]
    PayloadSize {
        /// Longest UDP payload that was configured.
        bytes: u16,
        /// Error from quinn.
        source: quinn::ConfigError,
    },
    /// The idle timeout is outside of what QUIC can express.
    #[error("QUIC cannot use its idle timeout: {0}")]
    IdleTimeout(#[source] quinn::VarIntBoundsExceeded),
    /// The TLS library has no TLS 1.3.
    #[error("the TLS library cannot provide TLS 1.3: {0}")]
    Tls(#[source] rustls::Error),
    /// The TLS configuration has no cipher suite that QUIC needs.
    #[error("QUIC cannot use the TLS configuration: {0}")]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The kernel refused a thread.
    #[error("cannot start the QUIC thread: {0}")]
    Thread(#[source] io::Error),
    /// The kernel refused what a runtime needs (epoll, timer).
    #[error("cannot start the runtime of the QUIC thread: {0}")]
    Runtime(#[source] io::Error),
    /// The thread panicked while it started.
    #[error("the QUIC thread ended while it started; the log has the reason")]
    Ended,
}

impl QuicError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "quic_bind",
            Self::Socket { .. } => "quic_socket",
            Self::PayloadSize { .. } => "quic_payload_size",
            Self::IdleTimeout(_) => "quic_idle_timeout",
            Self::Tls(_) | Self::Cipher(_) => "quic_tls",
            Self::Thread(_) | Self::Runtime(_) => "quic_thread",
            Self::Ended => "quic_panicked",
        }
    }
}
