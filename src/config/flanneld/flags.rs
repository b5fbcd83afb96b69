//! The table of flanneld's flags: type and effect of each.
#![forbid(unsafe_code)]

use Effect::{Key, Nothing, Own, Refused};
use Kind::{Bool, Number, Text};

/// A flag of flanneld.
#[derive(Debug)]
pub(super) struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// Type of the value.
    pub kind: Kind,
    /// What hopsack makes of the flag.
    pub effect: Effect,
}

impl Flag {
    /// Environment variable of the flag.
    pub(super) fn variable(&self) -> String {
        format!("FLANNELD_{}", self.name.replace('-', "_").to_uppercase())
    }
}

/// Type of a flag's value. In Go's syntax only a `bool` may be given without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`, as Go writes them.
    Bool,
    /// Any text.
    Text,
    /// A whole number.
    Number,
}

/// What hopsack makes of a flag.
#[derive(Debug, Clone, Copy)]
pub(super) enum Effect {
    /// It sets this key (section and name).
    Key(&'static str, &'static str),
    /// It needs more than a copy: `translate` reads it by name.
    Own,
    /// It has no effect, for this reason.
    Nothing(&'static str),
    /// It is refused; this says what to do.
    Refused(&'static str),
}

const KUBERNETES: &str = "it belongs to kube-subnet-mgr";
const NO_RULES: &str = "hopsack sets no packet filter rules";

macro_rules! flags {
    ($($name:literal $kind:ident $effect:expr;)+) => {
        &[$(Flag { name: $name, kind: $kind, effect: $effect }),+]
    };
}

/// Every flag of flanneld.
pub(super) const FLAGS: &[Flag] = flags! {
    "etcd-endpoints" Text Key("store", "endpoints");
    "etcd-prefix" Text Key("store", "prefix");
    "etcd-keyfile" Text Key("store", "key");
    "etcd-certfile" Text Key("store", "cert");
    "etcd-cafile" Text Key("store", "ca");
    "etcd-username" Text Key("store", "username");
    "etcd-password" Text Refused(
        "every user of this host can read a command line: write the password into a file, and set \
         HOPSACK_STORE_PASSWORD_FILE to its path"
    );
    "iface" Text Own;
    "iface-regex" Text Refused("name the interface with --iface, or leave it out and hopsack finds the interface");
    "iface-can-reach" Text Own;
    "public-ip" Text Own;
    "public-ipv6" Text Own;
    "subnet-file" Text Key("node", "subnet_env");
    "subnet-lease-renew-margin" Number Nothing("hopsack renews its lease after a third of its time");
    "ip-masq" Bool Refused("this version does not masquerade: leave it out, and let Docker or CNI masquerade");
    "ip-masq-fully-random-disable" Bool Nothing("hopsack sets no masquerading rules");
    "iptables-resync" Number Nothing(NO_RULES);
    "iptables-forward-rules" Bool Nothing(
        "hopsack sets no packet filter rules: accept packets from and to hopsack0 in FORWARD yourself"
    );
    "ip-blackhole-route" Bool Nothing("packets for unused addresses of this host's subnet are dropped anyway");
    "healthz-ip" Text Own;
    "healthz-port" Number Own;
    "kube-subnet-mgr" Bool Refused("this version keeps the map in etcd or in a file: set --etcd-endpoints");
    "kube-api-url" Text Nothing(KUBERNETES);
    "kubeconfig-file" Text Nothing(KUBERNETES);
    "kube-annotation-prefix" Text Nothing(KUBERNETES);
    "net-config-path" Text Nothing(KUBERNETES);
    "set-node-network-unavailable" Bool Nothing(KUBERNETES);
    "v" Number Own;
    "vmodule" Text Nothing("hopsack has log.filter for this");
    "log_backtrace_at" Text Nothing("hopsack has log.filter for this");
    "version" Bool Own;
};

/// The flags with their effects, for `hopsack flanneld --help`.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "Runs the daemon with flanneld's flags and FLANNELD_* variables. Keys without a flag come from\n\
         hopsack's own file and environment, see `hopsack run --help`.\n\n",
    );
    for flag in FLAGS {
        let effect = match flag.effect {
            Key(section, key) => format!("sets {section}.{key}"),
            Own => "supported".to_owned(),
            Nothing(why) => format!("no effect: {why}"),
            Refused(instead) => format!("refused: {instead}"),
        };
        text.push_str(&format!("  -{:<30}{effect}\n", flag.name));
    }
    text
}
