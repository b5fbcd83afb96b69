//! What befalls a lease, as an operator meets it: daemons on a real etcd, and what they say.
//!
//! The store by itself is tested in tests/store.rs; here it is the process that counts: its exit code, its one sentence in
//! log and status, and what pods notice.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions};
use etherparse::PacketBuilder;
use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::{Lab, Options, Store};
use hopsack::sys::netns::in_netns;
use serde_json::Value;
use support::{HOPSACK, attempt, http, json, run};

const SUBNETS: &str = "/coreos.com/network/subnets";
const PATIENCE: Duration = Duration::from_secs(40);

/// A lab with an etcd that has this network configuration, and no daemon running.
fn lab(label: &str, hosts: u8, network: &str) -> Lab {
    let options = Options { hosts, store: Store::Etcd { members: 1 }, ..Options::unique(label, HOPSACK) };
    let lab = Lab::create(options)
        .expect("these tests need root, /dev/net/tun, ip, ping and etcd: run scripts/test");
    lab.etcd(1).start().expect("started");
    lab.etcd(1).wait_ready(PATIENCE).expect("it serves");
    run(
        &lab.underlay_netns(),
        &[HOPSACK, "network", "init", network, "--store-endpoints", &lab.etcd(1).url()],
    );
    for (host, number) in lab.hosts().iter().zip(1..) {
        let env = format!("FLANNEL_SUBNET=10.244.{number}.1/24\n");
        std::fs::write(host.directory.join("subnet.env"), env).expect("written");
    }
    lab
}

fn ask<T: Send>(lab: &Lab, call: impl AsyncFnOnce(Client) -> Result<T, etcd_client::Error> + Send) -> T {
    let url = lab.etcd(1).url();
    let asked = in_netns(&lab.underlay_netns(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
        runtime.block_on(async { call(Client::connect([url], None).await?).await })
    });
    asked.expect("the lab has the namespace").expect("etcd answers")
}

fn start(lab: &Lab, host: usize) {
    lab.daemon(host).start().expect("started");
    lab.daemon(host).wait_ready(PATIENCE).expect("ready");
}

fn status(lab: &Lab, host: usize) -> Value {
    lab.daemon(host).status().expect("it answers")
}

fn leases(lab: &Lab, argv: &[&str]) -> String {
    let url = lab.etcd(1).url();
    run(&lab.underlay_netns(), &[&[HOPSACK, "leases"], argv, &["--store-endpoints", &url]].concat())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a daemon of its own identity until it ends; its last line and exit code.
fn run_to_its_end(lab: &Lab, host: usize, options: &[&str]) -> String {
    let site = lab.host(host);
    let own = site.directory.join("other").display().to_string();
    let config = lab.daemon(host).config_path().display().to_string();
    let script = "\"$@\"; echo exit code $?";
    let argv = ["sh", "-c", script, "sh", "timeout", "30", HOPSACK, "run", "--config", &config];
    let mine = ["--node-run-dir", &own, "--node-state-dir", &own, "--metrics-listen", ""];
    attempt(&site.netns, &[&argv[..], &mine, options].concat())
}

#[test]
fn limits_hold_a_full_network_is_waited_for_and_a_reservation_stays() {
    let network = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.2.0","Backend":{"Type":"udp"}}"#;
    let lab = lab("limits", 3, network);
    // h2's subnet is reserved: a key without lease.
    let (key, value) = (format!("{SUBNETS}/10.244.2.0-24"), r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#);
    ask(&lab, async |mut client| client.put(key.clone(), value, None).await);
    start(&lab, 1);
    start(&lab, 2);
    assert_eq!(status(&lab, 1)["subnets"], json("[\"10.244.1.0/24\"]"));
    assert_eq!(status(&lab, 2)["subnets"], json("[\"10.244.2.0/24\"]"));
    let reserved = ask(&lab, async |mut client| client.get(key.clone(), None).await);
    assert_eq!(reserved.kvs()[0].lease(), 0, "it is no lease that runs out");
    assert!(
        status(&lab, 2)["lease_expires_seconds"].is_null()
            && status(&lab, 1)["lease_expires_seconds"].is_i64()
    );
    assert!(leases(&lab, &["list", "--expiry"]).contains("never (reserved)"));

    // Both subnets that the limits leave are taken: h3 waits, says why, and is not ready.
    lab.daemon(3).start().expect("started");
    eventually("it says why", || lab.daemon(3).log().contains("all subnets of 10.244.0.0/16"));
    let said = lab.daemon(3).log();
    assert!(said.contains("hopsack leases list") && said.contains("trying on"), "{said}");
    assert!(lab.daemon(3).status().expect_err("not ready").to_string().contains("all subnets"));
    let ready = http(&lab.host(3).netns, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("all subnets"), "{ready}");
    assert!(http(&lab.host(3).netns, "/healthz").starts_with("HTTP/1.1 200"));

    // h1 leaves for good.
    lab.daemon(1).terminate().expect("it ends");
    leases(&lab, &["release", "10.244.1.0/24"]);
    lab.daemon(3).wait_ready(PATIENCE).expect("it is ready now");
    assert_eq!(status(&lab, 3)["subnets"], json("[\"10.244.1.0/24\"]"));
}

#[test]
fn a_lease_that_runs_out_is_made_anew_and_a_clash_and_a_bad_network_are_told() {
    let lab = lab("expired", 2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#);
    start(&lab, 1);
    start(&lab, 2);
    let whole = || ping(&lab.pod(1).netns, Ping::to(lab.pod(2).v4)).expect("ping runs").is_whole();
    eventually("pings pass", whole);

    // The etcd lease under the key runs out, all at once.
    let key = format!("{SUBNETS}/10.244.1.0-24");
    ask(&lab, async |mut client| {
        let found = client.get(key.clone(), None).await?;
        client.lease_revoke(found.kvs()[0].lease()).await.map(drop)
    });
    eventually("it is made anew", || lab.daemon(1).log().contains("had run out or been deleted: made anew"));
    let anew = ask(&lab, async |mut client| client.get(key.clone(), None).await);
    assert!(anew.kvs()[0].lease() != 0, "with a lease");
    eventually("pings pass", whole);

    // Another daemon at h1's address: refused, both are named, nothing is made.
    let said = run_to_its_end(&lab, 1, &["--node-name", "intruder", "--overlay-device", "hopsack9"]);
    assert!(said.contains("exit code 2") && said.contains("set node.public_ip"), "{said}");
    assert!(said.contains("\"h1\"") || said.contains("h1"), "{said}");
    assert!(said.contains("intruder"), "{said}");
    let devices = run(&lab.host(1).netns, &["ip", "-br", "link"]);
    assert!(!devices.contains("hopsack9"), "{devices}");
    assert!(whole(), "h1 is unharmed");

    // A network configuration that flanneld would refuse too.
    lab.daemon(2).terminate().expect("it ends");
    ask(&lab, async |mut client| {
        let bad = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.7"}"#;
        client.put("/coreos.com/network/config", bad, None).await
    });
    let said = run_to_its_end(&lab, 2, &[]);
    assert!(said.contains("exit code 2") && said.contains("SubnetMin"), "{said}");
    eventually("who runs is told", || lab.daemon(1).log().contains("was changed and is wrong"));
    assert_eq!(status(&lab, 1)["ready"], true);
}

#[test]
fn who_uses_our_subnet_is_named_and_stops_nobody() {
    let lab = lab("doubles", 2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#);
    start(&lab, 1);
    start(&lab, 2);
    eventually("they know each other", || status(&lab, 1)["peers"] == 1);
    assert!(status(&lab, 1)["alarm"].is_null());
    run(&lab.host(2).netns, &["ip", "addr", "add", "192.0.2.99/24", "dev", "eth0"]);
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4([10, 244, 1, 9], [10, 244, 1, 2], 64).udp(1, 2);
    builder.write(&mut packet, &[7; 20]).expect("fits");
    let target = SocketAddr::new(lab.host(1).public, 8285);
    let pid = lab.daemon(1).pid();
    let metric = |line: &str| http(&lab.host(1).netns, "/metrics").contains(line);
    assert!(metric("hopsack_own_subnet_alarm 0"));
    let before =
        ask(&lab, async |mut client| client.get(SUBNETS, Some(GetOptions::new().with_prefix())).await);
    for (from, named) in
        [("192.0.2.99", "192.0.2.99, which is in no lease"), ("192.0.2.2", "\"h2\" (192.0.2.2)")]
    {
        let socket =
            in_netns(&lab.host(2).netns, || UdpSocket::bind((from, 0))).expect("netns").expect("bound");
        for _ in 0..5 {
            socket.send_to(&packet, target).expect("sent");
        }
        eventually("status names it", || {
            status(&lab, 1)["alarm"].to_string().contains(&named.replace('"', "\\\""))
        });
        let alarm = status(&lab, 1)["alarm"].as_str().expect("a sentence").to_owned();
        for part in ["\"h1\" (192.0.2.1)", "10.244.1.0/24"] {
            assert!(alarm.contains(part), "{part}: {alarm}");
        }
        assert!(lab.daemon(1).log().contains(named), "and so does the log");
    }
    assert!(metric("hopsack_own_subnet_alarm 1"));
    assert!(metric("hopsack_dropped_packets_total{direction=\"ingress\",reason=\"own_source\"} 10"));
    let said = run(
        &lab.host(1).netns,
        &[HOPSACK, "status", "--config", &lab.daemon(1).config_path().display().to_string()],
    );
    assert!(said.contains("duplicate_subnet") && said.contains("h2"), "{said}");
    // The store was asked, and knows nothing of it: the node goes on, and has written nothing.
    assert_eq!((lab.daemon(1).pid(), &status(&lab, 1)["ready"]), (pid, &Value::Bool(true)));
    let after =
        ask(&lab, async |mut client| client.get(SUBNETS, Some(GetOptions::new().with_prefix())).await);
    let revisions =
        |got: &etcd_client::GetResponse| got.kvs().iter().map(|kv| kv.mod_revision()).collect::<Vec<_>>();
    assert_eq!(revisions(&before), revisions(&after));
}

#[test]
fn a_copied_state_directory_is_refused_and_the_original_goes_on() {
    let lab = lab("copied", 2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#);
    start(&lab, 1);
    let state = |host: usize| lab.host(host).directory.join("state");
    eventually("the map is on disk", || state(1).join("map").exists());
    std::fs::create_dir_all(state(2)).expect("a folder");
    for name in ["node-id", "map"] {
        std::fs::copy(state(1).join(name), state(2).join(name)).expect("copied");
    }
    std::fs::copy(lab.host(1).directory.join("subnet.env"), lab.host(2).directory.join("subnet.env"))
        .expect("copied");
    lab.daemon(2).start().expect("started");
    eventually("it ends", || lab.daemon(2).pid().is_none());
    let said = lab.daemon(2).log();
    assert!(said.contains("node.state_dir was copied: delete node-id"), "{said}");
    assert_eq!(lab.daemon(2).terminate().expect("it has ended").expect("it was ours").code(), Some(2));
    assert!(lab.daemon(1).log().contains("has a copy of node.state_dir"), "{}", lab.daemon(1).log());
    assert_eq!(status(&lab, 1)["subnets"], json("[\"10.244.1.0/24\"]"));

    // As the sentence says.
    for name in ["node-id", "map"] {
        std::fs::remove_file(state(2).join(name)).expect("removed");
    }
    start(&lab, 2);
    let subnet = status(&lab, 2)["subnets"][0].as_str().expect("one").to_owned();
    assert_ne!(subnet, "10.244.1.0/24");
}
