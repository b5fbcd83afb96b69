//! Initial packets of QUIC, as an attacker sends them: each is valid and begins another connection.
#![allow(dead_code, unreachable_pub)]

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, TokioRuntime, UdpPoller};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};

/// The first datagrams of this many connections to port `port` of any host.
pub fn initials(count: usize, port: u16) -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let capture = Arc::<Capture>::default();
        let config = EndpointConfig::default();
        let endpoint =
            Endpoint::new_with_abstract_socket(config, None, capture.clone(), Arc::new(TokioRuntime));
        let (endpoint, config) = (endpoint.expect("an endpoint"), client());
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let to = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), port));
            let connecting = endpoint.connect_with(config.clone(), to, "hopsack").expect("begun");
            while capture.sent().is_empty() {
                tokio::task::yield_now().await;
            }
            drop(connecting);
            found.extend(capture.sent().drain(..).take(1));
            tokio::task::yield_now().await;
            // What the connection sends at its end is no Initial packet of a new connection.
            capture.sent().clear();
        }
        found
    })
}

fn client() -> ClientConfig {
    // The hello of the default key exchange does not fit one datagram.
    let provider = rustls::crypto::CryptoProvider { kx_groups: vec![kx_group::X25519], ..default_provider() };
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"hopsack/1".to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a cipher suite for QUIC")))
}

/// A socket that keeps what is sent, and receives nothing.
#[derive(Default)]
struct Capture(Mutex<Vec<Vec<u8>>>);

impl Capture {
    fn sent(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().expect("no panic")
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Capture")
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Capture {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.sent().push(transmit.contents.to_vec());
        Ok(())
    }
    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 8286)))
    }
}
