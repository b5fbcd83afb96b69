//! Every key of the configuration, once: options, environment names, `--help` and `hopsack config` come from here.
//!
//! It holds names and sentences, not values: defaults are [`super::FileConfig::default`]'s.
//!
//! Invariant: the keys are exactly those of `FileConfig` (test `keys_are_those_of_the_file`).
#![forbid(unsafe_code)]

/// A configuration key.
#[derive(Debug)]
pub struct Key {
    /// `[section]` of the file.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// `--<section>-<key>`, without the dashes in front.
    pub option: &'static str,
    /// One sentence.
    pub help: &'static str,
}

impl Key {
    /// `HOPSACK_<SECTION>_<KEY>`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("HOPSACK_{}_{}", self.section, self.name).to_uppercase()
    }
}

macro_rules! keys {
    ($($section:ident . $name:ident, $option:literal, $help:literal;)*) => {
        &[$(Key { section: stringify!($section), name: stringify!($name), option: $option, help: $help }),*]
    };
}

/// All keys, in the order of the file.
pub const KEYS: &[Key] = keys! {
    node.interface, "node-interface", "underlay interface: a name, an address it bears, or \"auto\" (the default route's)";
    node.public_ip, "node-public-ip", "address at which other hosts reach this one, or \"auto\" (the interface's first)";
    node.name, "node-name", "how this host is called in the store (kind = \"etcd\"), or \"auto\" (its host name)";
    node.state_dir, "node-state-dir", "folder for what survives a reboot";
    node.run_dir, "node-run-dir", "folder for the control socket";
    node.subnet_env, "node-subnet-env", "file for FLANNEL_SUBNET, FLANNEL_MTU ..., read by CNI plugins and Docker scripts";
    store.kind, "store-kind", "where the subnet-to-host map is kept: \"etcd\" or \"file\"";
    store.path, "store-path", "kind = \"file\": the cluster file; it is read again when it changes";
    store.endpoints, "store-endpoints", "kind = \"etcd\": its endpoints, separated by commas";
    store.prefix, "store-prefix", "kind = \"etcd\": prefix of all keys";
    store.ca, "store-ca", "kind = \"etcd\": file with the CA certificates to trust";
    store.cert, "store-cert", "kind = \"etcd\": file with the client certificate";
    store.key, "store-key", "kind = \"etcd\": file with the client certificate's key";
    store.username, "store-username", "kind = \"etcd\": user name";
    store.password_file, "store-password-file", "kind = \"etcd\": file with the user's password";
    store.revoke_on_exit, "store-revoke-on-exit", "kind = \"etcd\": give the lease back on a clean stop: for nodes that leave for good";
    overlay.device, "overlay-device", "name of the overlay device";
    overlay.port, "overlay-port", "UDP port, the same on every host";
    overlay.mtu, "overlay-mtu", "MTU of the overlay device, or \"auto\" (interface MTU - 28, on an IPv6 underlay - 48)";
    overlay.source_port, "overlay-source-port", "\"spread\" (one source port a worker) or \"fixed\" (the cluster's)";
    overlay.verify_source, "overlay-verify-source", "inner source must lie in the sender's \"subnet\", sender must be a \"peer\", or \"off\"";
    dataplane.engine, "dataplane-engine", "how packets are moved: \"auto\" (the best that runs here), \"uring\", \"batch\" or \"simple\"";
    dataplane.workers, "dataplane-workers", "queues of the overlay device, each with a socket, or \"auto\" (4, or 1 on 1 CPU); the simple engine has 1";
    dataplane.offload, "dataplane-offload", "let the kernel hand over and take many packets as one; the simple engine cannot";
    dataplane.busy_poll_us, "dataplane-busy-poll-us", "microseconds to spin before sleeping, where packets come one after the other; 100 is a good one, 0 is off";
    security.mode, "security-mode", "encryption with hosts that encrypt too: \"none\", \"sealed\" (fast) or \"quic\" (standard)";
    security.require, "security-require", "no packet to or from a host that does not encrypt";
    security.port, "security-port", "UDP port for QUIC, or \"auto\" (the overlay's port + 1)";
    security.ca, "security-ca", "file with the cluster's CA certificates; without one the store says who is who";
    security.cert, "security-cert", "file with this node's certificate; without one the node makes its own in state_dir";
    security.key, "security-key", "file with this node's key, mode 0600";
    security.rekey_seconds, "security-rekey-seconds", "seconds until sealed packets get new keys";
    security.idle_seconds, "security-idle-seconds", "seconds without packets after which a QUIC connection is closed";
    nat.masquerade, "nat-masquerade", "masquerade what leaves the overlay; not in this version: false";
    metrics.listen, "metrics-listen", "address for /metrics, /healthz and /readyz; \"\" = off";
    log.filter, "log-filter", "error, warn, info, debug, or target=level,...";
    log.format, "log-format", "\"text\" or \"json\"";
};
