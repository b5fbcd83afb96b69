//! `[overlay]`: the overlay device and the wire format.
#![forbid(unsafe_code)]

use super::device_name::is_device_name;
use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::settings::Settings;
use crate::forward::VerifySource;

keys! {
    "overlay";
    DEVICE = "device",
        Kind::Text("1 to 15 letters, digits, '-', '_' or '.'"),
        Preset::Text("hopsack0"),
        "Name of the overlay device",
        "";
    PORT = "port",
        Kind::Number { min: 1, max: 65_535 },
        Preset::Number(8285),
        "UDP port of the overlay, the same on every host",
        "Open this port in the firewalls between the hosts.";
    // 68 is the least MTU of IPv4 (RFC 791); 65507 bytes fit one UDP datagram.
    MTU = "mtu",
        Kind::NumberOrAuto { min: 68, max: 65_507 },
        Preset::Text("auto"),
        "MTU of the overlay device in bytes, or \"auto\"",
        "\"auto\" takes the MTU of the underlay interface minus 28 bytes, on an IPv6 underlay minus 48, and 38 bytes \
         less if this host encrypts. IPv6 in the overlay needs at least 1280 (RFC 8200).";
    SOURCE_PORT = "source_port",
        Kind::Choice(&["spread", "fixed"]),
        Preset::Text("spread"),
        "UDP source ports of this host: \"spread\" or \"fixed\"",
        "\"spread\": each worker has a source port of its own, so that network cards and equal-cost paths can spread \
         the load.\n\
         \"fixed\": all workers send from overlay.port, for firewalls that require it.";
    VERIFY_SOURCE = "verify_source",
        Kind::Choice(&["subnet", "peer", "off"]),
        Preset::Text("subnet"),
        "Check of the source addresses of packets: \"subnet\", \"peer\" or \"off\"",
        "\"subnet\": the inner source address must belong to the host that sends the datagram: it is in a subnet of the \
         host, or a public address of its lease. Both hosts check this.\n\
         \"peer\": the datagram must come from a host of the cluster.\n\
         \"off\": nothing is checked, as in flanneld. Then any machine that reaches the port can send packets with \
         any source address.";
}

/// The backend that puts the map into effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// Our own data path.
    #[default]
    Userspace,
    /// None: the node runs and moves no packets. No key selects it; tests do.
    Null,
}

/// `[overlay]`
#[derive(Debug, Clone)]
pub struct OverlayConfig {
    /// Name of the TUN device; at most 15 bytes.
    pub device: String,
    /// UDP port of every host in the cluster.
    pub port: u16,
    /// MTU of the overlay device in bytes; `None`: interface MTU minus overhead.
    pub mtu: Option<u16>,
    /// Whether each worker has a source port of its own; otherwise all workers send from `port`.
    pub spread_ports: bool,
    /// How the source of a received packet is checked.
    pub verify_source: VerifySource,
    /// The backend.
    pub backend: BackendChoice,
}

impl OverlayConfig {
    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let device = settings.text(&DEVICE).to_owned();
        if !is_device_name(&device) {
            settings.refuse(&DEVICE)?;
        }
        Ok(Self {
            device,
            port: port(settings),
            mtu: settings.number(&MTU),
            spread_ports: settings.text(&SOURCE_PORT) == "spread",
            verify_source: match settings.text(&VERIFY_SOURCE) {
                "peer" => VerifySource::Peer,
                "off" => VerifySource::Off,
                _ => VerifySource::Subnet,
            },
            backend: BackendChoice::default(),
        })
    }
}

/// UDP port of the overlay.
pub(super) fn port(settings: &Settings) -> u16 {
    settings.number(&PORT).expect("the row's kind is a number")
}
