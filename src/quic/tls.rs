//! Configures TLS, QUIC's transport parameters, and the limits of a connection.
//!
//! It opens the socket and no connection. Nothing here changes during the life of a connection.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    IdleTimeout, MtuDiscoveryConfig, Runtime, ServerConfig, TransportConfig, VarInt,
};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;

use super::congestion::TunnelWindowFactory;
use super::error::QuicError;
use super::overhead::CONNECTION_ID_BYTES;
use super::socket::TrainSocket;
use crate::pki::verify::Verifier;
use crate::pki::{Identity, Trust};
use crate::sys::udp;

/// Name of the protocol: DATAGRAM frames carry inner packets, one-way streams carry connection
/// numbers, and the first two-way stream agrees on keys for sealed packets.
const ALPN: &[u8] = b"hopsack/1";
/// UDP payload in bytes that every path takes (RFC 9000 section 14).
const MIN_PAYLOAD_BYTES: u16 = 1200;
/// Interval of keep-alives. A peer that was killed and restarted answers the next one with a
/// stateless reset, so this host notices the restart within this time.
const KEEP_ALIVE: Duration = Duration::from_millis(400);
/// A peer that sends nothing for this time is unreachable. It is ten keep-alives, because a busy
/// machine may be slow.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(4);
/// Packets for each acknowledgement: about one train. Acknowledgements only show that the path
/// works and which packet size it takes.
const ACK_AFTER_PACKETS: u32 = 40;
/// Datagrams in bytes that wait in a connection to be sent: two trains. A longer buffer would add
/// delay, because no packet overtakes another there.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// Received datagrams in bytes that wait in a connection to be read.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Round-trip time that is assumed before the first measurement. Underlays are within a data
/// centre: with the default of 333 ms, a lost first packet would be repeated only after a second.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Most attempts to connect that wait until this host decides about them. Further ones are dropped
/// before any cryptography.
const MOST_INCOMING: usize = 64;
/// Bytes of further datagrams that are kept for each of them.
const INCOMING_BYTES: u64 = 16 << 10;
/// Pause before larger packets are tried again after the path has dropped them.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(10);

/// Whether the endpoint's port can be opened. It is closed again.
pub fn check_port(address: SocketAddr) -> Result<(), QuicError> {
    bind(address).map(|_| ())
}

fn bind(address: SocketAddr) -> Result<UdpSocket, QuicError> {
    udp::bind(address).map_err(|source| QuicError::Bind { address, source })
}

/// The endpoint, its socket, and the configuration for dialling.
pub(super) fn endpoint(
    address: SocketAddr,
    max_payload_bytes: u16,
    reset_key: &[u8; 32],
    (identity, trust): (&Identity, &Trust),
    runtime: Arc<dyn Runtime>,
) -> Result<(Endpoint, Arc<TrainSocket>, ClientConfig), QuicError> {
    let socket = bind(address)?;
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
    // quinn's default generator recognises its own ids by a key that a restart replaces. After a
    // restart it would ignore packets with ids of the earlier process, and their senders would
    // never learn that their connection is gone.
    config.cid_generator(|| Box::new(RandomConnectionId));
    let bytes = max_payload_bytes.max(MIN_PAYLOAD_BYTES);
    config.max_udp_payload_size(bytes).map_err(|source| QuicError::PayloadSize { bytes, source })?;
    let (server_config, client_config) = configs(max_payload_bytes, identity, trust)?;
    let unusable = |source| QuicError::Socket { address, source };
    let socket = TrainSocket::new(socket).map_err(unusable)?;
    let endpoint = Endpoint::new_with_abstract_socket(config, Some(server_config), socket.clone(), runtime)
        .map_err(unusable)?;
    Ok((endpoint, socket, client_config))
}

/// Configurations for answering and for dialling. Both use mutual TLS 1.3 with full handshakes
/// only: there is no 0-RTT, which an attacker could replay.
pub(super) fn configs(
    max_payload_bytes: u16,
    identity: &Identity,
    trust: &Trust,
) -> Result<(ServerConfig, ClientConfig), QuicError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier::new(trust.clone(), provider.clone()));
    let own_certificate = Arc::new(SingleCertAndKey::from(identity.key().clone()));

    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(QuicError::Tls)?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(own_certificate.clone());
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(QuicError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(own_certificate);
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();

    let transport = Arc::new(transport(max_payload_bytes)?);
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    // A peer stays at the address of its lease. If it moves, it gets a new lease and dials again.
    server.transport_config(transport.clone()).migration(false);
    server
        .max_incoming(MOST_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES * MOST_INCOMING as u64);
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    client.transport_config(transport);
    Ok((server, client))
}

fn transport(max_payload_bytes: u16) -> Result<TransportConfig, QuicError> {
    let payload_bytes = max_payload_bytes.max(MIN_PAYLOAD_BYTES);
    let silence_timeout = IdleTimeout::try_from(SILENCE_TIMEOUT).map_err(QuicError::IdleTimeout)?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(payload_bytes).black_hole_cooldown(BLACK_HOLE_COOLDOWN);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_AFTER_PACKETS));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(silence_timeout))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_mtu(payload_bytes)
        .min_mtu(MIN_PAYLOAD_BYTES)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .datagram_send_buffer_size(SEND_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES))
        .congestion_controller_factory(Arc::new(TunnelWindowFactory))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(1));
    Ok(transport)
}

/// Random connection ids. Ids of this process and of an earlier one look alike.
struct RandomConnectionId;

impl ConnectionIdGenerator for RandomConnectionId {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES as usize];
        // This cannot fail once the process has started. If an id were used twice, one connection
        // would fail to start.
        let _ = aws_lc_rs::rand::fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES.into()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
