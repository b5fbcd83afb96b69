//! `hopsack explain`: each outcome and each step, asked from running daemons.

mod support;

use hopsack::api::StepCode::{
    FastPath, KernelNoRoute, KernelToOtherDevice, KernelToOverlay, KernelToThisHost, RouteMulticast,
    RouteNoLease, RouteOutside, RouteOwnSubnet, RouteOwnSubnetMissing, RouteToPeer, RouteUnreachable,
    SendClear, SendSealed, SourceVerified, WaitForConnection,
};
use hopsack::api::{Explanation, Outcome, StepCode};
use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use support::{HOPSACK, eventually, hopsack, lab, run, text};

fn argv(lab: &Lab, host: usize, address: &str) -> [String; 4] {
    let config = lab.daemon(host).config_path().to_string_lossy().into_owned();
    ["explain".into(), address.into(), "--config".into(), config]
}

/// The explanation by one host for an address.
fn explain(lab: &Lab, host: usize, address: &str) -> Explanation {
    let [command, address, option, config] = argv(lab, host, address);
    let output = hopsack(&[&command, &address, &option, &config, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).expect("an explanation in JSON")
}

/// The same as text for people.
fn page(lab: &Lab, host: usize, address: &str) -> String {
    let argv = argv(lab, host, address);
    let output = hopsack(&argv.each_ref().map(String::as_str));
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Codes of the steps, in their order.
fn codes(explanation: &Explanation) -> Vec<StepCode> {
    explanation.steps.iter().map(|step| step.code).collect()
}

#[test]
fn clear_packets_are_explained() {
    let lab = lab("explain", 2, Family::V4);
    for to in [lab.pod(2).v4.to_string(), lab.pod(2).v6.to_string()] {
        let said = explain(&lab, 1, &to);
        assert_eq!((said.outcome, said.host.as_deref()), (Outcome::Sent, Some("h2")), "{said:#?}");
        assert_eq!(codes(&said), [KernelToOverlay, SourceVerified, RouteToPeer, SendClear, FastPath]);
        assert_eq!((said.next_hop.as_deref(), said.mtu), (Some("192.0.2.2:8285"), Some(1472)));
        assert_eq!((said.device.as_deref(), said.transport.as_deref()), (Some("hopsack0"), Some("udp")));
        assert!(said.frame.is_some_and(|text| text.contains("28")));
        assert!(said.drop.is_none() && said.keys.is_none() && said.connection.is_none());
    }
    assert_eq!(explain(&lab, 1, "10.244.2.2").subnet.as_deref(), Some("10.244.2.0/24"));

    // Packets that are dropped, each with the reason that counts it.
    for (address, code, reason) in [
        ("10.244.77.7", RouteNoLease, "no_route"),
        ("203.0.113.9", RouteOutside, ""),
        ("ff02::5", RouteMulticast, ""),
    ] {
        let said = explain(&lab, 1, address);
        assert!(said.has(code), "{said:#?}");
        if !reason.is_empty() {
            assert_eq!((said.outcome, said.drop.as_deref()), (Outcome::Dropped, Some(reason)), "{said:#?}");
        }
    }
    assert_eq!(codes(&explain(&lab, 1, "203.0.113.9")), [KernelNoRoute, RouteOutside]);

    // Packets that do not reach the daemon.
    let said = explain(&lab, 1, &lab.pod(1).v4.to_string());
    assert_eq!((said.outcome, said.device.as_deref()), (Outcome::Local, Some("cni0")), "{said:#?}");
    assert!(said.has(RouteOwnSubnet) && said.host.as_deref() == Some("h1"), "{said:#?}");
    let said = explain(&lab, 1, "192.0.2.1");
    assert_eq!((said.outcome, said.has(KernelToThisHost)), (Outcome::Local, true), "{said:#?}");
    assert_eq!(explain(&lab, 1, "192.0.2.2").outcome, Outcome::Elsewhere);
    run(&lab.host(1).netns, &["ip", "addr", "flush", "dev", "cni0"]);
    let said = explain(&lab, 1, &lab.pod(1).v4.to_string());
    assert_eq!((said.outcome, said.drop.as_deref()), (Outcome::Dropped, Some("own_subnet")), "{said:#?}");
    assert!(said.has(RouteOwnSubnetMissing), "{said:#?}");
    run(&lab.host(1).netns, &["ip", "route", "add", "10.244.2.0/24", "via", "192.0.2.2"]);
    let said = explain(&lab, 1, &lab.pod(2).v4.to_string());
    assert_eq!((said.outcome, said.device.as_deref()), (Outcome::Elsewhere, Some("eth0")), "{said:#?}");
    assert_eq!(codes(&said), [KernelToOtherDevice, RouteToPeer]);

    assert_eq!(hopsack(&["explain", "not-an-address"]).status.code(), Some(2));
}

#[test]
fn encrypted_packets_are_explained() {
    let (extra_config, store) = ("[security]\nmode = \"sealed\"\n".to_owned(), Store::Etcd { members: 1 });
    let options = Options { hosts: 3, extra_config, store, ..Options::unique("explain-sealed", HOPSACK) };
    let lab = Lab::create(options)
        .expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test");
    let edit = |host: usize, security: &str| {
        let path = lab.daemon(host).config_path();
        let config = std::fs::read_to_string(&path).expect("the file exists");
        std::fs::write(&path, config.replace("mode = \"sealed\"", security)).expect("written");
    };
    // h3 does not encrypt.
    edit(3, "mode = \"none\"");
    lab.start().expect("ready");
    let to = lab.pod(2).v4.to_string();
    ping(&lab.pod(1).netns, Ping::to(lab.pod(2).v4)).expect("ping runs");
    // If both hosts started a handshake at once, the keys are replaced once more.
    let name = |explanation: Explanation| explanation.keys.map(|keys| keys.name);
    eventually("keys of one name at both ends", || {
        let here = name(explain(&lab, 1, &to));
        here.is_some() && here == name(explain(&lab, 2, &lab.pod(1).v4.to_string()))
    });
    let here = explain(&lab, 1, &to);
    assert_eq!((here.outcome, here.transport.as_deref()), (Outcome::Sent, Some("sealed")), "{here:#?}");
    assert_eq!(codes(&here), [KernelToOverlay, SourceVerified, RouteToPeer, SendSealed, FastPath]);
    assert_eq!((here.mtu, here.next_hop.as_deref()), (Some(1434), Some("192.0.2.2:8285")), "{here:#?}");
    assert!(here.keys.as_ref().is_some_and(|keys| keys.epoch > 0), "{here:#?}");
    assert!(here.frame.as_ref().is_some_and(|text| text.contains("56")), "{here:#?}");
    assert!(here.connection.is_some(), "{here:#?}");
    let announced = here.announced.as_deref().unwrap_or_default();
    assert!(announced.contains("8286") && announced.contains("sha256:"), "{here:#?}");
    for name in ["egress dropped as no_key", "ingress dropped as replayed", "ingress dropped as unauthentic"]
    {
        assert!(here.counters.iter().any(|row| row.name == name && row.value == 0), "{name}: {here:#?}");
    }
    let page = page(&lab, 1, &to);
    assert!(page.contains(&here.sentence) && page.lines().any(|line| line.starts_with("keys")), "{page}");

    // Packets between h3 and the others are clear, since h3 wants it so; each end says which one it
    // is.
    let said = explain(&lab, 1, &lab.pod(3).v4.to_string());
    assert_eq!((said.outcome, said.has(SendClear)), (Outcome::Sent, true));
    assert!(said.encryption.is_some_and(|text| text.contains("h3")));
    let from_h3 = explain(&lab, 3, &to);
    assert!(from_h3.has(SendClear), "{from_h3:#?}");
    assert!(from_h3.encryption.is_some_and(|text| text.contains("security.mode")));

    // While the other daemon is away, packets to it wait.
    lab.daemon(2).terminate().expect("it ends");
    eventually("no connection", || explain(&lab, 1, &to).outcome == Outcome::Waits);
    let waits = explain(&lab, 1, &to);
    assert!(waits.has(WaitForConnection), "{waits:#?}");
    ping(&lab.pod(1).netns, Ping { count: 1, ..Ping::to(lab.pod(2).v4) }).expect("ping runs");
    eventually("a reason why there is no connection", || {
        let now = explain(&lab, 1, &to);
        now.outcome == Outcome::Waits && now.connection != waits.connection
    });

    edit(2, "mode = \"sealed\"\nrequire = true");
    lab.daemon(2).start().expect("started");
    eventually("required", || lab.daemon(2).status().is_ok());
    let said = explain(&lab, 2, &lab.pod(3).v4.to_string());
    assert_eq!((said.outcome, said.drop.as_deref()), (Outcome::Dropped, Some("no_route")), "{said:#?}");
    assert_eq!((said.host.as_deref(), said.subnet.as_deref()), (Some("h3"), Some("10.244.3.0/24")));
    assert_eq!(codes(&said), [KernelToOverlay, SourceVerified, RouteUnreachable]);
}
