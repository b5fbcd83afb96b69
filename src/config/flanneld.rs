//! flanneld's own command line and `FLANNELD_*` variables, read as our configuration: for `hopsack
//! flanneld`, a drop-in.
//!
//! Pure but for two questions to a [`Host`]. It does not check values that ours checks too; and it
//! refuses what hopsack cannot do rather than run without it. The table for people is in
//! configs/README.md.
//!
//! Invariant: every flag of flanneld is in `FLAGS`, honoured, refused or without effect, and a flag
//! that is not there is an error as it is in flanneld. Sources: flannel-io/flannel `main.go`;
//! package `flag` of Go.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// To run.
    Run(Translated),
    /// `-help`.
    Help,
    /// `-version`.
    Version,
}

/// Our configuration in place of flanneld's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// As [`super::Sources::options`].
    pub options: Vec<(&'static str, &'static str, String)>,
    /// What was said and changes nothing, one sentence each.
    pub notes: Vec<String>,
}

/// What has to be asked of this host.
pub trait Host {
    /// Whether an interface of this name, or with this address, is there.
    fn has(&self, interface: &str) -> bool;
    /// The address from which this host sends to another.
    fn towards(&self, other: IpAddr) -> Option<IpAddr>;
}

/// What a flag takes; Go lets a flag without a value be a `bool` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Text,
    Number,
}

/// What becomes of a flag.
#[derive(Debug, Clone, Copy)]
enum Effect {
    /// It is this key of ours.
    Key(&'static str, &'static str),
    /// It takes more than one word to translate: [`translate`] does.
    Own,
    /// It changes nothing, for this reason.
    Nothing(&'static str),
    /// It cannot be had; what to do instead.
    Refused(&'static str),
}
use Effect::{Key, Nothing, Own, Refused};
use Kind::{Bool, Number, Text};

const KUBERNETES: &str = "it belongs to kube-subnet-mgr";
const MASQUERADE: &str = "hopsack sets no masquerading rules";

/// Every flag of flanneld.
const FLAGS: &[(&str, Kind, Effect)] = &[
    ("etcd-endpoints", Text, Key("store", "endpoints")),
    ("etcd-prefix", Text, Key("store", "prefix")),
    ("etcd-keyfile", Text, Key("store", "key")),
    ("etcd-certfile", Text, Key("store", "cert")),
    ("etcd-cafile", Text, Key("store", "ca")),
    ("etcd-username", Text, Key("store", "username")),
    (
        "etcd-password",
        Text,
        Refused(
            "a command line is no secret: write the password into a file and set HOPSACK_STORE_PASSWORD_FILE to it",
        ),
    ),
    ("iface", Text, Own),
    ("iface-regex", Text, Refused("name the interface with --iface, or leave it to be found")),
    ("iface-can-reach", Text, Own),
    ("public-ip", Text, Own),
    ("public-ipv6", Text, Own),
    ("subnet-file", Text, Key("node", "subnet_env")),
    (
        "subnet-lease-renew-margin",
        Number,
        Nothing("hopsack renews its lease when a third of its time has passed"),
    ),
    (
        "ip-masq",
        Bool,
        Refused("this version does not masquerade: leave it out, and let Docker or CNI masquerade"),
    ),
    ("ip-masq-fully-random-disable", Bool, Nothing(MASQUERADE)),
    ("iptables-resync", Number, Nothing("hopsack sets no packet filter rules")),
    (
        "iptables-forward-rules",
        Bool,
        Nothing("hopsack sets no packet filter rules: let hopsack0 pass FORWARD yourself"),
    ),
    (
        "ip-blackhole-route",
        Bool,
        Nothing("packets for unused addresses of this host's subnet are dropped anyway"),
    ),
    ("healthz-ip", Text, Own),
    ("healthz-port", Number, Own),
    (
        "kube-subnet-mgr",
        Bool,
        Refused("this version keeps the map in etcd or in a file: give it --etcd-endpoints"),
    ),
    ("kube-api-url", Text, Nothing(KUBERNETES)),
    ("kubeconfig-file", Text, Nothing(KUBERNETES)),
    ("kube-annotation-prefix", Text, Nothing(KUBERNETES)),
    ("net-config-path", Text, Nothing(KUBERNETES)),
    ("set-node-network-unavailable", Bool, Nothing(KUBERNETES)),
    ("v", Number, Own),
    ("vmodule", Text, Nothing("set log.filter instead")),
    ("log_backtrace_at", Text, Nothing("set log.filter instead")),
    ("version", Bool, Own),
];

/// A flag that was given.
#[derive(Debug)]
struct Given {
    name: &'static str,
    kind: Kind,
    effect: Effect,
    value: String,
    /// As it was given, for sentences.
    origin: String,
}

/// Reads a command line, without the program's name, and an environment. The error is one sentence.
pub fn translate(
    args: &[String],
    environment: &[(String, String)],
    host: &dyn Host,
) -> Result<Request, String> {
    let Some(mut given) = parse(args)? else { return Ok(Request::Help) };
    for (name, kind, effect) in FLAGS {
        let variable = format!("FLANNELD_{}", name.replace('-', "_").to_uppercase());
        let said = environment.iter().find(|(key, value)| *key == variable && !value.is_empty());
        // The command line wins, as in flanneld.
        if let Some((_, value)) = said
            && !given.iter().any(|flag| flag.name == *name)
        {
            let origin = format!("{variable}={value}");
            given.push(Given { name, kind: *kind, effect: *effect, value: value.clone(), origin });
        }
    }
    given.iter().try_for_each(check)?;
    let last = |name: &str| given.iter().rev().find(|flag| flag.name == name);
    let text = |name| last(name).map(|flag| flag.value.as_str()).filter(|value| !value.is_empty());
    if last("version").is_some_and(|flag| truth(&flag.value) == Some(true)) {
        return Ok(Request::Version);
    }

    let mut translated = Translated::default();
    let mut set = |section, key, value: &str| translated.options.push((section, key, value.to_owned()));
    set("store", "kind", "etcd");
    // flanneld's defaults where they are not ours.
    set(
        "store",
        "endpoints",
        text("etcd-endpoints").unwrap_or("http://127.0.0.1:4001,http://127.0.0.1:2379"),
    );
    for flag in &given {
        let is_last = last(flag.name).is_some_and(|last| std::ptr::eq(last, flag));
        match flag.effect {
            Key("store", "endpoints") | Own => {}
            Key(section, key) if is_last => set(section, key, &flag.value),
            Key(..) => {}
            Nothing(why) => translated.notes.push(format!("{} is without effect: {why}", flag.origin)),
            Refused(mend) => {
                let off = flag.value.is_empty() || truth(&flag.value) == Some(false);
                if !off {
                    return Err(format!("{} is refused: {mend}", hidden(flag)));
                }
            }
        }
    }
    let mut set = |section, key, value: String| translated.options.push((section, key, value));
    if let Some(interface) = interface(&given, text("iface-can-reach"), host)? {
        set("node", "interface", interface);
    }
    match (text("public-ip"), text("public-ipv6")) {
        (None, None) => {}
        (Some(_), Some(_)) => {
            return Err("of public-ip and public-ipv6 one can be had: hopsack is reached at one address, and publishes \
                        both of the interface if neither is given"
                .into());
        }
        (Some(address), None) | (None, Some(address)) => set("node", "public_ip", address.to_owned()),
    }
    set("metrics", "listen", listen(text("healthz-ip"), text("healthz-port"))?);
    if text("v").and_then(|level| level.parse::<i64>().ok()).is_some_and(|level| level > 0) {
        set("log", "filter", "debug".to_owned());
    }
    Ok(Request::Run(translated))
}

/// Go's syntax: `-x`, `--x`, `-x=v`, and `-x v` unless `x` is a bool. `None`: help is asked for.
fn parse(args: &[String]) -> Result<Option<Vec<Given>>, String> {
    let mut given = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            return Err(format!("{arg:?} is no flag: flanneld would ignore it and all after it"));
        };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        if matches!(name, "h" | "help") {
            return Ok(None);
        }
        let Some((name, kind, effect)) = FLAGS.iter().find(|(known, ..)| *known == name) else {
            return Err(format!("flanneld has no flag {arg}; see `hopsack flanneld --help`"));
        };
        let (value, origin) = match (value, kind) {
            (Some(value), _) => (value.to_owned(), arg.clone()),
            (None, Bool) => ("true".to_owned(), arg.clone()),
            (None, Text | Number) => {
                let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
                (value.clone(), format!("{arg} {value}"))
            }
        };
        given.push(Given { name, kind: *kind, effect: *effect, value, origin });
    }
    Ok(Some(given))
}

fn check(flag: &Given) -> Result<(), String> {
    let good = match flag.kind {
        Text => true,
        Bool => truth(&flag.value).is_some(),
        Number => flag.value.parse::<i64>().is_ok(),
    };
    let margin = flag.name == "subnet-lease-renew-margin"
        && !flag.value.parse::<i64>().is_ok_and(|minutes| (1..1440).contains(&minutes));
    match (good, margin) {
        (true, false) => Ok(()),
        (true, true) => Err(format!("{}: write minutes, from 1 to 1439", flag.origin)),
        (false, _) if flag.kind == Bool => Err(format!("{}: write true or false", flag.origin)),
        (false, _) => Err(format!("{}: write a whole number", flag.origin)),
    }
}

/// What Go's `strconv.ParseBool` takes.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// A flag as it was given, without its secret.
fn hidden(flag: &Given) -> String {
    if flag.name == "etcd-password" { flag.name.to_owned() } else { flag.origin.clone() }
}

/// The first of the interfaces that is there, as flanneld tries them.
fn interface(given: &[Given], reach: Option<&str>, host: &dyn Host) -> Result<Option<String>, String> {
    let named: Vec<&str> = given
        .iter()
        .filter(|flag| flag.name == "iface" && !flag.value.is_empty())
        .map(|flag| &*flag.value)
        .collect();
    match (named.as_slice(), reach) {
        ([], None) => Ok(None),
        ([], Some(text)) => {
            let other: IpAddr =
                text.parse().map_err(|_| format!("iface-can-reach={text}: write an IP address"))?;
            let own =
                host.towards(other).ok_or_else(|| format!("iface-can-reach={text}: no route leads there"))?;
            Ok(Some(own.to_string()))
        }
        // What is wrong with a single one is told with what there is instead.
        ([only], _) => Ok(Some((*only).to_owned())),
        (several, _) => match several.iter().find(|name| host.has(name)) {
            Some(name) => Ok(Some((*name).to_owned())),
            None => {
                Err(format!("iface: none of {} is an interface or address of this host", several.join(", ")))
            }
        },
    }
}

/// flanneld serves health only if it is told a port; so do we under its name, and metrics with it.
fn listen(ip: Option<&str>, port: Option<&str>) -> Result<String, String> {
    let (ip, port) = (ip.unwrap_or("0.0.0.0"), port.unwrap_or("0"));
    let ip: IpAddr = ip.parse().map_err(|_| format!("healthz-ip={ip}: write an IP address"))?;
    match port.parse::<u16>() {
        Ok(0) => Ok(String::new()),
        Ok(port) => Ok(SocketAddr::new(ip, port).to_string()),
        Err(_) => Err(format!("healthz-port={port}: write a port, or 0 for off")),
    }
}

/// The flags, for `hopsack flanneld --help`.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "Runs the daemon as flanneld's flags and FLANNELD_* variables say. Keys that have no flag come from \
         hopsack's\nown file and environment, see `hopsack run --help`.\n\n",
    );
    for (name, _, effect) in FLAGS {
        let what = match effect {
            Key(section, key) => format!("{section}.{key}"),
            Own => "honoured".to_owned(),
            Nothing(why) => format!("without effect: {why}"),
            Refused(mend) => format!("refused: {mend}"),
        };
        text.push_str(&format!("  -{name:<30}{what}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;
    impl Host for Fake {
        fn has(&self, interface: &str) -> bool {
            ["eth1", "192.0.2.1"].contains(&interface)
        }
        fn towards(&self, other: IpAddr) -> Option<IpAddr> {
            other.is_ipv4().then_some([192, 0, 2, 1].into())
        }
    }

    fn read(args: &[&str], environment: &[(&str, &str)]) -> Result<Request, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        translate(&args, &environment, &Fake)
    }

    fn run(args: &[&str], environment: &[(&str, &str)]) -> Translated {
        match read(args, environment) {
            Ok(Request::Run(translated)) => translated,
            other => panic!("{other:?}"),
        }
    }

    fn value(translated: &Translated, section: &str, key: &str) -> Option<String> {
        let found = translated.options.iter().find(|option| (option.0, option.1) == (section, key));
        found.map(|option| option.2.clone())
    }

    #[test]
    fn gos_syntax_is_understood() {
        for args in [
            ["-etcd-prefix=/a", "-public-ip=192.0.2.1"].as_slice(),
            &["--etcd-prefix=/a", "--public-ip", "192.0.2.1"],
            &["-etcd-prefix", "/b", "-public-ip=192.0.2.1", "-iptables-forward-rules", "-etcd-prefix", "/a"],
        ] {
            let translated = run(args, &[]);
            assert_eq!(
                value(&translated, "store", "prefix").as_deref(),
                Some("/a"),
                "the last wins: {args:?}"
            );
            assert_eq!(value(&translated, "node", "public_ip").as_deref(), Some("192.0.2.1"));
        }
        for (args, problem) in [
            (["-nosuch=1"].as_slice(), "no flag -nosuch=1"),
            (&["-etcd-prefix"], "needs a value"),
            (&["-ip-masq", "false"], "\"false\" is no flag"),
            (&["-ip-masq=yes"], "write true or false"),
            (&["-healthz-port=x"], "whole number"),
            (&["-subnet-lease-renew-margin=1440"], "1439"),
        ] {
            let told = read(args, &[]).unwrap_err();
            assert!(told.contains(problem), "{args:?}: {told}");
        }
        assert_eq!(read(&["-v=3", "--help"], &[]), Ok(Request::Help));
        assert_eq!(read(&["-version"], &[]), Ok(Request::Version));
    }

    #[test]
    fn without_a_word_it_is_flanneld() {
        let translated = run(&[], &[]);
        let endpoints = value(&translated, "store", "endpoints");
        assert_eq!(endpoints.as_deref(), Some("http://127.0.0.1:4001,http://127.0.0.1:2379"));
        assert_eq!(value(&translated, "store", "kind").as_deref(), Some("etcd"));
        assert_eq!(value(&translated, "metrics", "listen").as_deref(), Some(""), "no port, no health");
        assert_eq!(translated.notes, [""; 0]);
    }

    #[test]
    fn the_environment_is_read_and_the_command_line_wins() {
        let environment = [
            ("FLANNELD_ETCD_ENDPOINTS", "http://192.0.2.9:2379"),
            ("FLANNELD_SUBNET_FILE", "/a"),
            ("FLANNELD_HEALTHZ_PORT", "8471"),
            ("FLANNELD_IFACE", ""),
        ];
        let translated = run(&["-subnet-file=/b", "-healthz-ip=127.0.0.1"], &environment);
        assert_eq!(value(&translated, "store", "endpoints").as_deref(), Some("http://192.0.2.9:2379"));
        assert_eq!(value(&translated, "node", "subnet_env").as_deref(), Some("/b"));
        assert_eq!(value(&translated, "metrics", "listen").as_deref(), Some("127.0.0.1:8471"));
        assert_eq!(value(&translated, "node", "interface"), None);
    }

    #[test]
    fn interfaces_are_tried_in_turn() {
        let chosen = |args: &[&str]| value(&run(args, &[]), "node", "interface");
        assert_eq!(chosen(&["-iface=eth0"]).as_deref(), Some("eth0"));
        assert_eq!(chosen(&["-iface=eth0", "-iface=eth1"]).as_deref(), Some("eth1"));
        assert_eq!(chosen(&["-iface=eth9", "-iface=192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(chosen(&["-iface-can-reach=198.51.100.1"]).as_deref(), Some("192.0.2.1"));
        assert!(read(&["-iface=a", "-iface=b"], &[]).unwrap_err().contains("none of a, b"));
        assert!(read(&["-iface-can-reach=2001:db8::1"], &[]).unwrap_err().contains("no route"));
    }

    #[test]
    fn what_cannot_be_had_is_refused_and_the_rest_is_told() {
        for (arg, mend) in [
            ("-ip-masq", "CNI"),
            ("-kube-subnet-mgr=true", "--etcd-endpoints"),
            ("-iface-regex=eth.*", "--iface"),
            ("-etcd-password=hunter2", "HOPSACK_STORE_PASSWORD_FILE"),
        ] {
            let told = read(&[arg], &[]).unwrap_err();
            assert!(told.contains("refused") && told.contains(mend) && !told.contains("hunter2"), "{told}");
        }
        assert_eq!(run(&["-ip-masq=false", "-kube-subnet-mgr=false"], &[]).notes, [""; 0]);
        let notes = run(&["-iptables-resync", "7"], &[]).notes;
        assert_eq!(notes, ["-iptables-resync 7 is without effect: hopsack sets no packet filter rules"]);
    }
}
