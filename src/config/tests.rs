//! Tests of the whole configuration: layers, checks, and the file that is shipped.

use std::path::Path;

use super::*;

type Options<'a> = [(&'static str, &'static str, &'a str)];

fn load(text: &str, environment: &[(&str, &str)], options: &Options<'_>) -> Result<Config, ConfigError> {
    let sources = Sources {
        file: None,
        environment: environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        options: options.iter().map(|(s, k, v)| (*s, *k, (*v).into())).collect(),
    };
    sources.load_text(text, Path::new("test.toml"))
}

/// Key and message of a refused value.
fn refused(options: &Options<'_>) -> (&'static str, String) {
    match load("", &[], options) {
        Err(error @ ConfigError::Value { key, .. }) => (key, error.to_string()),
        other => panic!("{options:?}: {other:?}"),
    }
}

#[test]
fn shipped_file_is_the_generated_one() {
    let shipped = include_str!("../../configs/hopsack.toml");
    assert!(
        shipped == template(),
        "write the file again: cargo run --bin hopsack -- config --default > configs/hopsack.toml"
    );
}

#[test]
fn template_is_the_defaults() {
    let from_template = load(&template(), &[], &[]).expect("the template is valid").values;
    let defaults = load("", &[], &[]).expect("the defaults are valid").values;
    assert_eq!(from_template.len(), defaults.len());
    for (ours, default) in from_template.iter().zip(&defaults) {
        assert_eq!((ours.key, &ours.value), (default.key, &default.value));
        assert_eq!(ours.origin, Origin::File("test.toml".into()));
    }
}

#[test]
fn later_layer_wins_and_is_named() {
    let text = "[overlay]\nport = 1000\nmtu = 1400\ndevice = \"file0\"";
    let environment = [("HOPSACK_OVERLAY_PORT", "2000"), ("HOPSACK_OVERLAY_MTU", "1401")];
    let config = load(text, &environment, &[("overlay", "port", "3000")]).expect("a valid configuration");
    assert_eq!(config.overlay.port, 3000);
    assert_eq!(config.overlay.mtu, Some(1401));
    assert_eq!(config.overlay.device, "file0");
    let origin = |key: &str| {
        let is_key = |value: &&Setting| value.section == "overlay" && value.key == key;
        config.values.iter().find(is_key).expect("listed").origin.clone()
    };
    assert_eq!(origin("port"), Origin::Option("--overlay-port".into()));
    assert_eq!(origin("mtu"), Origin::Environment("HOPSACK_OVERLAY_MTU".into()));
    assert_eq!(origin("device"), Origin::File("test.toml".into()));
    assert_eq!(origin("verify_source"), Origin::Default);
}

#[test]
fn bad_file_is_refused_with_its_position() {
    for (text, at, named) in [
        ("[overlay]\nprot = 1", (2, 1), "prot"),
        ("[overlay]\n\n[overlaid]\nport = 1", (3, 2), "overlaid"),
        ("overlay = 1", (1, 1), "overlay"),
        ("[overlay]\nport = \"http\"", (2, 8), "overlay.port"),
        ("[overlay]\nport = ", (2, 8), ""),
        ("[store]\nendpoints = [1]", (2, 13), "store.endpoints"),
    ] {
        match load(text, &[], &[]) {
            Err(ConfigError::Syntax { line, column, problem, .. }) => {
                assert_eq!((line, column), at, "{text}: {problem}");
                assert!(problem.contains(named) && !problem.contains('\n'), "{text}: {problem}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn bad_value_is_refused_with_its_key() {
    for (section, key, value) in [
        ("overlay", "port", "0"),
        ("overlay", "port", "http"),
        ("overlay", "mtu", "big"),
        ("overlay", "mtu", "67"),
        ("overlay", "device", "a-name-of-16-chars"),
        ("overlay", "verify_source", "maybe"),
        ("overlay", "source_port", "random"),
        ("node", "public_ip", "10.0.0.0/8"),
        ("node", "interface", "a/b"),
        ("node", "run_dir", "run"),
        ("node", "name", ""),
        ("store", "kind", "consul"),
        ("store", "endpoints", "a:2379"),
        ("store", "endpoints", ""),
        ("store", "endpoints", "http://a:1,https://b:1"),
        ("store", "ca", "/ca.pem"),
        ("store", "cert", "/c.pem"),
        ("store", "username", "root"),
        ("store", "password_file", "/p"),
        ("store", "prefix", "network"),
        ("dataplane", "engine", "dpdk"),
        ("dataplane", "workers", "65"),
        ("dataplane", "offload", "yes"),
        ("dataplane", "busy_poll_us", "1001"),
        ("security", "mode", "tls"),
        ("security", "require", "true"),
        ("security", "port", "0"),
        ("security", "port", "8285"),
        ("security", "cert", "/c.pem"),
        ("security", "key", "/k.pem"),
        ("security", "ca", "/ca.pem"),
        ("security", "rekey_seconds", "0"),
        ("security", "idle_seconds", "0"),
        ("nat", "masquerade", "true"),
        ("metrics", "listen", "9285"),
        ("log", "filter", "chatty"),
        ("log", "format", "xml"),
    ] {
        let (refused, message) = refused(&[(section, key, value)]);
        assert_eq!(refused, format!("{section}.{key}"), "{message}");
        assert!(!message.contains('\n'), "one line: {message}");
    }
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let simple = ("dataplane", "engine", "simple");
    let https = ("store", "endpoints", "https://a:1, https://b:1");
    let ca = ("store", "ca", "/ca.pem");
    let sealed = ("security", "mode", "sealed");
    for (options, key) in [
        (&[simple, ("dataplane", "workers", "2")][..], "dataplane.workers"),
        (&[simple, ("dataplane", "busy_poll_us", "1")], "dataplane.busy_poll_us"),
        (&[https], "store.ca"),
        (&[https, ca, ("store", "cert", "/c.pem")], "store.cert"),
        (&[https, ca, ("store", "key", "/k.pem")], "store.key"),
        (&[sealed, ("security", "require", "true"), ("overlay", "verify_source", "off")], "security.require"),
    ] {
        let (refused, message) = refused(options);
        assert_eq!(refused, key, "{message}");
    }
}

#[test]
fn etcd_is_the_default_store() {
    let etcd = |options: &Options<'_>| match load("", &[], options).expect("valid").store {
        StoreConfig::Etcd(etcd) => *etcd,
        StoreConfig::File { .. } => panic!("the wrong store"),
    };
    let default = etcd(&[]);
    assert_eq!(default.prefix, "/coreos.com/network");
    assert!(default.tls.is_none() && default.user.is_none() && default.node_name.is_none());
    let tls = etcd(&[("store", "endpoints", "https://a:1, https://b:1"), ("store", "ca", "/ca.pem")]);
    assert_eq!(tls.endpoints, ["https://a:1", "https://b:1"]);
    assert_eq!(tls.tls.expect("TLS").client, None);
}
