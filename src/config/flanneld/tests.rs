//! Tests of flanneld's command line as hopsack's configuration.

use std::net::IpAddr;

use super::*;

struct Fake;

impl Host for Fake {
    fn has(&self, interface: &str) -> bool {
        ["eth1", "192.0.2.1"].contains(&interface)
    }

    fn source_towards(&self, other: IpAddr) -> Option<IpAddr> {
        other.is_ipv4().then_some([192, 0, 2, 1].into())
    }
}

fn read(args: &[&str], environment: &[(&str, &str)]) -> Result<Request, FlagError> {
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
fn go_syntax_is_accepted() {
    for args in [
        ["-etcd-prefix=/a", "-public-ip=192.0.2.1"].as_slice(),
        &["--etcd-prefix=/a", "--public-ip", "192.0.2.1"],
        &["-etcd-prefix", "/b", "-public-ip=192.0.2.1", "-iptables-forward-rules", "-etcd-prefix", "/a"],
    ] {
        let translated = run(args, &[]);
        let prefix = value(&translated, "store", "prefix");
        assert_eq!(prefix.as_deref(), Some("/a"), "the last one wins: {args:?}");
        assert_eq!(value(&translated, "node", "public_ip").as_deref(), Some("192.0.2.1"));
    }
    assert_eq!(read(&["-v=3", "--help"], &[]), Ok(Request::Help));
    assert_eq!(read(&["-version"], &[]), Ok(Request::Version));
}

#[test]
fn wrong_flags_are_errors() {
    let error = |args: &[&str]| read(args, &[]).expect_err("refused");
    assert_eq!(error(&["-nosuch=1"]), FlagError::Unknown("-nosuch=1".into()));
    assert_eq!(error(&["-etcd-prefix"]), FlagError::NoValue("-etcd-prefix".into()));
    assert_eq!(error(&["-ip-masq", "false"]), FlagError::NotAFlag("false".into()));
    assert_eq!(error(&["-public-ip=192.0.2.1", "-public-ipv6=2001:db8::1"]), FlagError::BothAddresses);
    for flag in ["-ip-masq=yes", "-healthz-port=x", "-subnet-lease-renew-margin=1440", "-healthz-port=65536"]
    {
        assert!(matches!(error(&[flag]), FlagError::BadValue { .. }), "{flag}");
    }
}

#[test]
fn defaults_are_those_of_flanneld() {
    let translated = run(&[], &[]);
    let endpoints = value(&translated, "store", "endpoints");
    assert_eq!(endpoints.as_deref(), Some("http://127.0.0.1:4001,http://127.0.0.1:2379"));
    assert_eq!(value(&translated, "store", "kind").as_deref(), Some("etcd"));
    assert_eq!(value(&translated, "metrics", "listen").as_deref(), Some(""), "without a port it is off");
    assert!(translated.notes.is_empty());
}

#[test]
fn command_line_wins_over_environment() {
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
fn first_interface_that_exists_is_used() {
    let chosen = |args: &[&str]| value(&run(args, &[]), "node", "interface");
    assert_eq!(chosen(&["-iface=eth0"]).as_deref(), Some("eth0"));
    assert_eq!(chosen(&["-iface=eth0", "-iface=eth1"]).as_deref(), Some("eth1"));
    assert_eq!(chosen(&["-iface=eth9", "-iface=192.0.2.1"]).as_deref(), Some("192.0.2.1"));
    assert_eq!(chosen(&["-iface-can-reach=198.51.100.1"]).as_deref(), Some("192.0.2.1"));
    assert_eq!(read(&["-iface=a", "-iface=b"], &[]), Err(FlagError::NoInterface("a, b".into())));
    let unreachable = "2001:db8::1";
    let args = format!("-iface-can-reach={unreachable}");
    assert_eq!(read(&[&args], &[]), Err(FlagError::NoRoute(unreachable.into())));
}

#[test]
fn unsupported_flags_are_refused_or_noted() {
    for flag in ["-ip-masq", "-kube-subnet-mgr=true", "-iface-regex=eth.*", "-etcd-password=hunter2"] {
        let error = read(&[flag], &[]).expect_err(flag);
        assert!(matches!(error, FlagError::Refused { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2"), "a secret is not shown");
    }
    assert!(run(&["-ip-masq=false", "-kube-subnet-mgr=false"], &[]).notes.is_empty());
    assert_eq!(run(&["-iptables-resync", "7"], &[]).notes.len(), 1);
}
