//! `hopsack explain`: each thing that may become of a packet, asked of running daemons.

mod support;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use support::{HOPSACK, eventually, hopsack, json, lab, run, text};

fn argv(lab: &Lab, host: usize, address: &str) -> [String; 4] {
    let config = lab.daemon(host).config_path().to_string_lossy().into_owned();
    ["explain".into(), address.into(), "--config".into(), config]
}

/// What a host says of an address, for programs.
fn explain(lab: &Lab, host: usize, address: &str) -> serde_json::Value {
    let [command, address, option, config] = argv(lab, host, address);
    let output = hopsack(&[&command, &address, &option, &config, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    json(&String::from_utf8_lossy(&output.stdout))
}

/// The same for people.
fn page(lab: &Lab, host: usize, address: &str) -> String {
    let argv = argv(lab, host, address);
    let output = hopsack(&argv.each_ref().map(String::as_str));
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn says(said: &serde_json::Value, field: &str, words: &[&str]) {
    let value = said[field].as_str().unwrap_or_default();
    assert!(words.iter().all(|word| value.contains(word)), "{field} lacks one of {words:?}: {said:#}");
}

#[test]
fn each_outcome_in_clear() {
    let lab = lab("explain", 2, Family::V4);
    for to in [lab.pod(2).v4.to_string(), lab.pod(2).v6.to_string()] {
        let said = explain(&lab, 1, &to);
        assert_eq!((&said["outcome"], &said["host"]), (&"sent".into(), &"h2".into()), "{said:#}");
        assert_eq!((&said["next_hop"], &said["mtu"]), (&"192.0.2.2:8285".into(), &1472.into()));
        assert_eq!((&said["device"], &said["transport"]), (&"hopsack0".into(), &"udp".into()));
        says(&said, "encryption", &["none", "security.mode"]);
        says(&said, "frame", &["28 bytes more"]);
        assert!(said["drop"].is_null() && said["keys"].is_null() && said["connection"].is_null(), "{said:#}");
    }
    assert_eq!(explain(&lab, 1, "10.244.2.2")["subnet"], "10.244.2.0/24");

    // What goes nowhere, with the reason that counts it.
    let said = explain(&lab, 1, "10.244.77.7");
    assert_eq!((&said["outcome"], &said["drop"]), (&"dropped".into(), &"no_route".into()), "{said:#}");
    says(&said, "sentence", &["no lease holds it"]);
    let said = explain(&lab, 1, "203.0.113.9");
    assert_eq!(said["outcome"], "dropped");
    says(&said, "sentence", &["outside the overlay's networks", "10.244.0.0/16", "no route"]);
    says(&explain(&lab, 1, "ff02::5"), "sentence", &["multicast"]);

    // What never meets the daemon.
    let said = explain(&lab, 1, &lab.pod(1).v4.to_string());
    assert_eq!((&said["outcome"], &said["device"]), (&"local".into(), &"cni0".into()), "{said:#}");
    assert_eq!(explain(&lab, 1, "192.0.2.1")["outcome"], "local");
    assert_eq!(explain(&lab, 1, "192.0.2.2")["outcome"], "elsewhere");
    run(&lab.host(1).netns, &["ip", "addr", "flush", "dev", "cni0"]);
    let said = explain(&lab, 1, &lab.pod(1).v4.to_string());
    assert_eq!((&said["outcome"], &said["drop"]), (&"dropped".into(), &"own_subnet".into()), "{said:#}");
    run(&lab.host(1).netns, &["ip", "route", "add", "10.244.2.0/24", "via", "192.0.2.2"]);
    let said = explain(&lab, 1, &lab.pod(2).v4.to_string());
    assert_eq!((&said["outcome"], &said["device"]), (&"elsewhere".into(), &"eth0".into()), "{said:#}");
    says(&said, "sentence", &["by eth0, not by hopsack0", "ip route get 10.244.2.2"]);

    assert_eq!(hopsack(&["explain", "not-an-address"]).status.code(), Some(2));
}

#[test]
fn keys_and_connections_and_why_there_are_none() {
    let (extra_config, store) = ("[security]\nmode = \"sealed\"\n".to_owned(), Store::Etcd { members: 1 });
    let options = Options { hosts: 3, extra_config, store, ..Options::unique("explain-sealed", HOPSACK) };
    let lab = Lab::create(options)
        .expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test");
    // One that does not encrypt, and one that wants all to do so.
    let edit = |host: usize, security: &str| {
        let path = lab.daemon(host).config_path();
        let config = std::fs::read_to_string(&path).expect("it is there");
        std::fs::write(&path, config.replace("mode = \"sealed\"", security)).expect("written");
    };
    edit(3, "mode = \"none\"");
    lab.start().expect("ready");
    let to = lab.pod(2).v4.to_string();
    ping(&lab.pod(1).netns, Ping::to(lab.pod(2).v4)).expect("ping runs");
    // Where both have dialled at once, keys follow keys.
    let both = || (explain(&lab, 1, &to), explain(&lab, 2, &lab.pod(1).v4.to_string()));
    eventually("keys of one name at both ends", || {
        let (here, there) = both();
        here["keys"].is_object() && here["keys"]["name"] == there["keys"]["name"]
    });
    let here = explain(&lab, 1, &to);
    assert_eq!((&here["outcome"], &here["transport"]), (&"sent".into(), &"sealed".into()), "{here:#}");
    assert_eq!(here["mtu"], 1434, "{here:#}");
    assert!(here["keys"]["epoch"].as_u64().is_some_and(|epoch| epoch > 0), "{here:#}");
    says(&here, "sentence", &["sealed and sent to h2 at 192.0.2.2:8285"]);
    says(&here, "frame", &["sealed", "56 bytes more"]);
    says(&here, "connection", &["QUIC, for"]);
    says(&here, "announced", &["sealed with QUIC at port 8286", "sha256:"]);
    let counts = here["counters"].as_array().expect("a list");
    for name in ["egress dropped as no_key", "ingress dropped as replayed", "ingress dropped as unauthentic"]
    {
        assert!(counts.iter().any(|count| count["name"] == name && count["value"] == 0), "{name}: {here:#}");
    }
    let page = page(&lab, 1, &to);
    assert!(page.starts_with("a packet for 10.244.2.2: it is sealed and sent to h2"), "{page}");
    assert!(page.contains("keys") && page.contains("s old") && page.contains("changed "), "{page}");

    // In clear, since one of the two wants it so; each end says which.
    let said = explain(&lab, 1, &lab.pod(3).v4.to_string());
    assert_eq!(said["outcome"], "sent");
    says(&said, "encryption", &["none: h3 announces no encryption"]);
    says(&explain(&lab, 3, &to), "encryption", &["none: this host does not encrypt"]);

    // The other daemon is away: what is sent to it waits.
    lab.daemon(2).terminate().expect("it ends");
    eventually("no connection", || explain(&lab, 1, &to)["outcome"] == "waits");
    says(&explain(&lab, 1, &to), "sentence", &["waits up to 2 s", "h2"]);
    ping(&lab.pod(1).netns, Ping { count: 1, ..Ping::to(lab.pod(2).v4) }).expect("ping runs");
    eventually("the reason", || {
        explain(&lab, 1, &to)["connection"].as_str().is_some_and(|text| text.contains("no answer in 3 s"))
    });

    edit(2, "mode = \"sealed\"\nrequire = true");
    lab.daemon(2).start().expect("started");
    eventually("required", || lab.daemon(2).status().is_ok());
    let said = explain(&lab, 2, &lab.pod(3).v4.to_string());
    assert_eq!((&said["outcome"], &said["drop"]), (&"dropped".into(), &"no_route".into()), "{said:#}");
    assert_eq!((&said["host"], &said["subnet"]), (&"h3".into(), &"10.244.3.0/24".into()), "{said:#}");
    says(&said, "sentence", &["belongs to h3", "does not encrypt", "require"]);
}
