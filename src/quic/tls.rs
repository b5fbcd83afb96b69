//! How the endpoint is set up: TLS, transport parameters, what a connection may cost.
//!
//! Nothing here changes while a connection lives.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    IdleTimeout, MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;

use super::QuicError;
use super::congestion::OpenConfig;
use super::socket::Socket;
use crate::pki::verify::Verifier;
use crate::pki::{Identity, Trust};
use crate::sys::udp;

/// The protocol: DATAGRAM frames are inner packets, the first stream agrees on keys for sealed ones.
const ALPN: &[u8] = b"hopsack/1";
/// RFC 9000 §14: every path takes this.
const LEAST_PAYLOAD: u16 = 1200;
/// A peer that was killed and came back answers the next of these by a stateless reset: so it is noticed.
const KEEP_ALIVE: Duration = Duration::from_millis(400);
/// A peer that says nothing for so long is away. Much more than a keep-alive: a busy machine may be slow.
const IDLE: Duration = Duration::from_secs(4);
/// One acknowledgement for about each train: they only tell that the path lives and how wide it is.
const ACK_AFTER: u32 = 40;
/// Bytes of datagrams that wait in a connection, each way: two trains to send, and no more, since nothing overtakes there.
const SEND_BUFFER: usize = 128 << 10;
const RECEIVE_BUFFER: usize = 4 << 20;

/// The endpoint, its socket, and how it dials.
pub(super) fn endpoint(
    address: SocketAddr,
    payload: u16,
    secret: &[u8; 32],
    (identity, trust): (&Identity, &Trust),
) -> Result<(Endpoint, Arc<Socket>, ClientConfig), QuicError> {
    let setup = |error: &dyn std::fmt::Display| QuicError::Setup(error.to_string());
    let socket = udp::bind(address).map_err(|error| QuicError::Bind { address, error })?;
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)));
    // The default generator knows its own ids by a key that dies with the process, and ignores those of the one before
    // us: their owners would never hear that the connection is no more.
    config.cid_generator(|| Box::new(AnyId));
    config.max_udp_payload_size(payload.max(LEAST_PAYLOAD)).map_err(|error| setup(&error))?;
    let (server, client) = configs(payload, identity, trust)?;
    let socket = Socket::new(socket).map_err(|error| QuicError::Bind { address, error })?;
    let endpoint =
        Endpoint::new_with_abstract_socket(config, Some(server), socket.clone(), Arc::new(TokioRuntime))
            .map_err(|error| QuicError::Bind { address, error })?;
    Ok((endpoint, socket, client))
}

/// How it answers and how it dials: mutual TLS 1.3 with full handshakes only, so no 0-RTT that could be replayed.
pub(super) fn configs(
    payload: u16,
    identity: &Identity,
    trust: &Trust,
) -> Result<(ServerConfig, ClientConfig), QuicError> {
    let setup = |error: &dyn std::fmt::Display| QuicError::Setup(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier::new(trust.clone(), provider.clone()));
    let shown = Arc::new(SingleCertAndKey::from(identity.key().clone()));

    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| setup(&error))?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(shown.clone());
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| setup(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(shown);
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();

    let transport = Arc::new(transport(payload)?);
    let crypto = QuicServerConfig::try_from(server).map_err(|error| setup(&error))?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    // A peer is where its lease says; who moves has a new lease, and connects anew.
    server.transport_config(transport.clone()).migration(false);
    let crypto = QuicClientConfig::try_from(client).map_err(|error| setup(&error))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(transport);
    Ok((server, client))
}

fn transport(payload: u16) -> Result<TransportConfig, QuicError> {
    let payload = payload.max(LEAST_PAYLOAD);
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE).map_err(|error| QuicError::Setup(error.to_string()))?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(payload).black_hole_cooldown(Duration::from_secs(10));
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_AFTER));
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_mtu(payload)
        .min_mtu(LEAST_PAYLOAD)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .datagram_send_buffer_size(SEND_BUFFER)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .congestion_controller_factory(Arc::new(OpenConfig))
        // Underlays in one data centre: the default of 333 ms would keep a lost first packet for a second.
        .initial_rtt(Duration::from_millis(50))
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(1));
    Ok(transport)
}

/// Connection ids by chance, which nobody can tell from those of an earlier process.
struct AnyId;

impl AnyId {
    /// As long as [`super::OVERHEAD`] has it.
    const LEN: usize = 8;
}

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; Self::LEN];
        // It cannot fail once the process has started; an id twice would only be a connection that does not come about.
        let _ = aws_lc_rs::rand::fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        Self::LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
