//! Naive tunnel: a TUN device without offloads, quinn with its defaults, one packet for each
//! wake-up.
//!
//! The bench compares hopsack's `quic` mode with it. It is not for real use: it knows one peer,
//! accepts every certificate, and checks no packet.
//!
//! Invariant: each packet is one QUIC datagram and does not wait for another packet.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, SendDatagramError, ServerConfig};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::TLS13;

use super::super::error::LabError;
use crate::pki::Trust;
use crate::pki::verify::Verifier;
use crate::sys::tun::SimpleTun;
use crate::sys::{Interest, poll};

pub(super) const DEVICE: &str = "naive0";
/// MTU of the device: what fits into a DATAGRAM frame when quinn's path MTU has reached its default
/// of 1452 bytes.
pub(super) const MTU: u16 = 1400;
/// Time between two checks of quinn's path MTU.
const PMTU_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Arguments of one end.
#[derive(Debug, Args)]
pub struct NaiveArgs {
    /// Name of an existing TUN device.
    #[arg(long)]
    device: String,
    /// Local address.
    #[arg(long)]
    bind: SocketAddr,
    /// Address of the other end, if this end connects to it.
    #[arg(long)]
    dial: Option<SocketAddr>,
}

/// Carries packets until the connection ends.
///
/// # Errors
/// The error that ended the tunnel.
pub fn run(args: &NaiveArgs) -> Result<(), LabError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| runtime.block_on(tunnel(args)));
    ended.map_err(|error| LabError::Bench(format!("the naive tunnel ended: {error}")))
}

async fn tunnel(args: &NaiveArgs) -> io::Result<()> {
    let (_endpoint, connection) = connect(args).await?;
    while connection.max_datagram_size().is_none_or(|size| size < usize::from(MTU)) {
        tokio::time::sleep(PMTU_CHECK_INTERVAL).await;
    }
    let device = SimpleTun::open(&args.device)?;
    let (reader, sender) = (device.share(), connection.clone());
    // This thread ends with the process, because a read of an idle device cannot be interrupted.
    std::thread::spawn(move || to_peer(&reader, &sender));
    from_peer(&device, &connection).await
}

async fn connect(args: &NaiveArgs) -> io::Result<(Endpoint, Connection)> {
    let Some(peer) = args.dial else {
        let made = rcgen::generate_simple_self_signed(["naive".to_owned()]).map_err(io::Error::other)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let server = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key.into());
        let endpoint = Endpoint::server(server.map_err(io::Error::other)?, args.bind)?;
        let incoming = endpoint.accept().await.ok_or(io::ErrorKind::ConnectionAborted)?;
        return Ok((endpoint, incoming.await?));
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(Trust::Store, provider)))
        .with_no_client_auth();
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let endpoint = Endpoint::client(args.bind)?;
    let client = ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(client, peer, "naive").map_err(io::Error::other)?;
    Ok((endpoint, connecting.await?))
}

fn to_peer(device: &SimpleTun, connection: &Connection) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        poll([(device.as_fd(), Interest::Read)], None)?;
        let length = device.read(&mut buffer)?;
        match connection.send_datagram(Bytes::copy_from_slice(&buffer[..length])) {
            Ok(()) | Err(SendDatagramError::TooLarge) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

async fn from_peer(device: &SimpleTun, connection: &Connection) -> io::Result<()> {
    loop {
        let packet = connection.read_datagram().await?;
        device.write(&packet)?;
    }
}
