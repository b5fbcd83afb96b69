//! `[security]`: encryption between hosts.
//!
//! Invariant: a [`SecurityConfig`] with `require` has a mode that encrypts, and does not accept
//! packets in clear from everybody.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::overlay;
use super::settings::Settings;
use crate::route::Mode;

const FILE_OR_NOTHING: Kind = Kind::Text("the absolute path of a file, or \"\" for none");

keys! {
    "security";
    MODE = "mode",
        Kind::Choice(&["none", "sealed", "quic"]),
        Preset::Text("none"),
        "Encryption with hosts that encrypt too: \"none\", \"sealed\" (fast) or \"quic\" (standard)",
        "Leases announce which hosts encrypt. Packets to other hosts travel in clear, unless `require` is set.\n\
         \"sealed\": workers seal each packet, with keys from a QUIC handshake. It is fast; the format is hopsack's own.\n\
         \"quic\": packets travel in a QUIC connection. It is slower; the format is a standard.";
    REQUIRE = "require",
        Kind::BoolOrAuto,
        Preset::Text("auto"),
        "Exchange no packet with a host that does not encrypt; \"auto\": if `ca` is set",
        "";
    PORT = "port",
        Kind::NumberOrAuto { min: 1, max: 65_535 },
        Preset::Text("auto"),
        "UDP port for QUIC, or \"auto\" (overlay.port + 1)",
        "Open this port in the firewalls between hosts that encrypt.";
    CA = "ca",
        FILE_OR_NOTHING,
        Preset::Text(""),
        "File with the CA certificates of the cluster",
        "With a CA, a host must show a certificate that the CA signed for the name of this host (`hopsack pki` makes \
         them) and for its subnets. Without one, a host must show the certificate that its lease names; then write \
         access to the store is enough to replace a host.";
    BIND_SUBNETS = "bind_subnets",
        Kind::Bool,
        Preset::Bool(true),
        "With a CA: a host has only the subnets that are in its certificate",
        "This host leases exactly the subnets of its own certificate (`hopsack pki issue --subnet`), and a host whose \
         certificate does not contain all subnets of its lease gets no packets. If false, the store decides which host \
         has which subnet.";
    CERT = "cert",
        FILE_OR_NOTHING,
        Preset::Text(""),
        "File with this host's certificate (PEM)",
        "Without one, the daemon makes its own certificate in node.state_dir.";
    KEY = "key",
        FILE_OR_NOTHING,
        Preset::Text(""),
        "File with the key of this host's certificate (PEM, mode 0600)",
        "";
    REKEY_SECONDS = "rekey_seconds",
        Kind::Number { min: 1, max: 3600 },
        Preset::Number(3600),
        "Seconds until sealed packets get new keys",
        "Keys are replaced earlier after 2^32 packets.";
    IDLE_SECONDS = "idle_seconds",
        Kind::Number { min: 1, max: 86_400 },
        Preset::Number(120),
        "Seconds without packets after which a QUIC connection is closed",
        "The next packet opens the connection again.";
    REVOKE_SECONDS = "revoke_seconds",
        Kind::Number { min: 0, max: 3600 },
        Preset::Number(10),
        "Seconds until connections and keys of a revoked certificate are removed",
        "A certificate is revoked when the lease names another one (with a CA: another host), or when a new CA file \
         does not contain its CA. Within this time, a host that has a new certificate shows it.";
}

/// `[security]`
#[derive(Debug, Clone)]
pub struct SecurityConfig {
    /// How this host encrypts packets to hosts that encrypt too.
    pub mode: Mode,
    /// Whether packets to and from hosts that do not encrypt are dropped.
    pub require: bool,
    /// UDP port of the QUIC endpoint; `None`: the overlay's port plus one.
    pub port: Option<u16>,
    /// File with the CA certificates to trust; `None`: the leases name the certificates.
    pub ca: Option<PathBuf>,
    /// Whether certificates of a CA must contain the subnets of their hosts.
    pub bind_subnets: bool,
    /// Files with this host's certificate and key; `None`: the daemon makes its own in `state_dir`.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Lifetime of the keys for sealed packets.
    pub rekey: Duration,
    /// A QUIC connection without packets is closed after this time.
    pub idle: Duration,
    /// Connections and keys of a certificate that is not valid for its host any more are removed
    /// after this time.
    pub revoke_after: Duration,
}

impl SecurityConfig {
    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let Ok(mode) = settings.text(&MODE).parse::<Mode>() else { return settings.refuse(&MODE) };
        let has_ca = !settings.text(&CA).is_empty();
        let require = settings.switch(&REQUIRE).unwrap_or(has_ca && mode != Mode::None);
        if require && mode == Mode::None {
            settings.refuse_with(
                &REQUIRE,
                "with security.mode = \"none\" everything would be sent in clear, which this key forbids: set \
                 security.mode to \"sealed\" or \"quic\"",
            )?;
        }
        if require && settings.text(&overlay::VERIFY_SOURCE) == "off" {
            settings.refuse_with(
                &REQUIRE,
                "with overlay.verify_source = \"off\" packets in clear are accepted from everybody, which this key \
                 forbids: set overlay.verify_source to \"subnet\" or \"peer\"",
            )?;
        }
        let own = settings.certificate(&CERT, &KEY)?;
        let ca = match settings.text(&CA) {
            "" => None,
            _ if own.is_none() => settings.refuse_with(
                &CA,
                "with a CA this host needs a certificate that the CA signed: set security.cert and security.key \
                 (`hopsack pki issue` makes the files)",
            )?,
            _ => Some(settings.path(&CA)?),
        };
        let port = settings.number(&PORT);
        if port == Some(overlay::port(settings)) {
            settings.refuse_with(
                &PORT,
                "this is overlay.port, which carries packets in another format: write another port",
            )?;
        }
        let seconds = |key| Duration::from_secs(settings.number(key).expect("the row's kind is a number"));
        Ok(Self {
            mode,
            require,
            port,
            ca,
            bind_subnets: settings.is_set(&BIND_SUBNETS),
            own,
            rekey: seconds(&REKEY_SECONDS),
            idle: seconds(&IDLE_SECONDS),
            revoke_after: seconds(&REVOKE_SECONDS),
        })
    }
}
