//! Hosts on one network with links of different MTU: what a host sends fits the link of its peer.
//!
//! Each test has a lab of its own and runs at the same time as the others. No test asserts a speed.

mod support;

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, tcp};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::batch::Message;
use hopsack::sys::netns::in_netns;
use hopsack::sys::udp;
use support::encrypted::{of_peer, wait_keys};
use support::{HOPSACK, Scrape, eventually, run};

on_every_engine! {
    packets_fit_the_link_that_a_lease_announces
    packets_fit_the_link_of_a_host_that_announces_none
}

fn packets_fit_the_link_that_a_lease_announces(engine: &'static str) {
    let with = |mode: &'static str| {
        let label = format!("mtu-{mode}-{engine}");
        let config = format!("[dataplane]\nengine = \"{engine}\"\n[security]\nmode = \"{mode}\"\n");
        thread::spawn(move || {
            let lab = lab(&label, Store::Etcd { members: 1 }, &config);
            // The link of h2 shrinks while the daemons run: its lease is written again.
            shrink_link(&lab, 2);
            let mtu = if mode == "none" { 1472 } else { 1500 - 28 - hopsack::quic::OVERHEAD_BYTES };
            eventually("h1 knows the link of h2", || of_peer(&lab, 1, 2, "mtu") == mtu);
            if mode == "sealed" {
                wait_keys(&lab, 1, 2);
                wait_keys(&lab, 2, 1);
            }
            both_ways(&lab);
            let how = Ping { payload: 4000, dont_fragment: true, count: 1, ..Ping::to(lab.pod(2).v4) };
            let pinged = ping(&lab.pod(1).netns, how).expect("ping runs");
            assert!(pinged.output.contains("Frag needed"), "{label}: {}", pinged.output);
            assert_bundles(&lab, engine, &label);
        })
    };
    for thread in ["none", "sealed"].map(with) {
        thread.join().expect("no panic");
    }
}

/// A cluster file says nothing about links.
fn packets_fit_the_link_of_a_host_that_announces_none(engine: &str) {
    let label = format!("mtu-file-{engine}");
    let lab = lab(&label, Store::File, &format!("[dataplane]\nengine = \"{engine}\"\n"));
    shrink_link(&lab, 2);
    eventually("h2 follows its link", || {
        lab.daemon(2).ask(r#"{"command":"status"}"#).expect("the daemon answers")["mtu"] == 1472
    });
    both_ways(&lab);
    assert_eq!(of_peer(&lab, 1, 2, "mtu"), 8972, "a packet alone is limited by our own link");
    assert_bundles(&lab, engine, &label);
}

/// Two hosts with links of MTU 9000.
fn lab(label: &str, store: Store, config: &str) -> Lab {
    let extra_config = config.to_owned();
    let options = Options { hosts: 2, mtu: 9000, store, extra_config, ..Options::unique(label, HOPSACK) };
    Lab::up(options).expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test")
}

/// The link of a host gets an MTU of 1500, at both its ends, and its pod gets what the overlay
/// leaves. The bridge drops longer packets without an answer, as a switch does.
fn shrink_link(lab: &Lab, host: usize) {
    let set = |netns: &str, link: &str, mtu: &str| run(netns, &["ip", "link", "set", link, "mtu", mtu]);
    let (host, pod) = (lab.host(host), lab.pod(host));
    set(&lab.underlay_netns(), &host.name, "1500");
    set(&host.netns, "eth0", "1500");
    set(&host.netns, "pod", "1400");
    set(&pod.netns, "eth0", "1400");
}

/// Small packets and TCP pass in both directions.
fn both_ways(lab: &Lab) {
    for (from, to) in [(1, 2), (2, 1)] {
        small_packets_pass(lab, from, to);
        let (from, to) = (lab.pod(from), lab.pod(to));
        let amount = Amount::Bytes(8 << 20);
        tcp(Flow { from, to, family: Family::V4, amount, verify: true }).expect("all bytes arrive");
    }
}

/// Super packets of small datagrams: many bundles.
fn small_packets_pass(lab: &Lab, from: usize, to: usize) {
    const SIZE: usize = 100;
    let (from, to) = (lab.pod(from), lab.pod(to));
    let address = (to.v4, 7000).into();
    let bind = |netns: &str, ip| {
        in_netns(netns, move || UdpSocket::bind((ip, 7000))).expect("netns").expect("bound")
    };
    let (receiver, sender) = (bind(&to.netns, to.v4), bind(&from.netns, from.v4));
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let memory = vec![7; 60 * SIZE];
    for _ in 0..20 {
        let message = Message::train(0, memory.len(), SIZE, address);
        assert_eq!(udp::send_many(&sender, &memory, &[message]).expect("sent"), 1);
        for n in 0..60 {
            let length = receiver.recv(&mut [0; 2000]);
            assert_eq!(length.expect("it arrives"), SIZE, "{} to {}, datagram {n}", from.name, to.name);
        }
    }
}

fn assert_bundles(lab: &Lab, engine: &str, label: &str) {
    let bundles = Scrape::of(&lab.host(2).netns).get("hopsack_ingress_bundles_total");
    let makes_bundles = engine != "simple" && !label.contains("quic");
    assert_eq!(bundles > 0, makes_bundles, "{label}: {bundles} bundles");
}
