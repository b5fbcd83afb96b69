//! Leases as an operator sees them: daemons on a real etcd, their exit codes, logs and status, and
//! what pods notice. The store by itself is tested in `tests/store/`.

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

/// A lab with an etcd that holds this network configuration. No daemon runs yet.
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

/// Runs another daemon, with an identity of its own, until it ends. Returns its output and exit
/// code.
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
fn full_network_is_waited_for_and_reservation_stays() {
    let network = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.2.0","Backend":{"Type":"udp"}}"#;
    let lab = lab("limits", 3, network);
    // The subnet of h2 is reserved: its key has no etcd lease.
    let (key, value) = (format!("{SUBNETS}/10.244.2.0-24"), r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#);
    ask(&lab, async |mut client| client.put(key.clone(), value, None).await);
    start(&lab, 1);
    start(&lab, 2);
    assert_eq!(status(&lab, 1)["subnets"], json("[\"10.244.1.0/24\"]"));
    assert_eq!(status(&lab, 2)["subnets"], json("[\"10.244.2.0/24\"]"));
    let reserved = ask(&lab, async |mut client| client.get(key.clone(), None).await);
    assert_eq!(reserved.kvs()[0].lease(), 0, "a reservation does not expire");
    assert!(
        status(&lab, 2)["lease_expires_seconds"].is_null()
            && status(&lab, 1)["lease_expires_seconds"].is_i64()
    );
    let listed = json(&leases(&lab, &["list", "--json"]));
    let of_h2 = listed["leases"].as_array().into_iter().flatten().find(|row| row["public"][0] == "192.0.2.2");
    assert_eq!(of_h2.map(|row| row["reserved"] == true), Some(true), "{listed}");

    // Both subnets inside the limits are taken: h3 waits, reports why, and is not ready.
    lab.daemon(3).start().expect("started");
    eventually("the log has the reason", || lab.daemon(3).log().contains("10.244.0.0/16"));
    let waiting = lab.daemon(3).status().expect_err("not ready").to_string();
    assert!(waiting.contains("10.244.0.0/16"), "{waiting}");
    let ready = http(&lab.host(3).netns, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("10.244.0.0/16"), "{ready}");
    assert!(http(&lab.host(3).netns, "/healthz").starts_with("HTTP/1.1 200"));

    // h1 stops and does not come back.
    lab.daemon(1).terminate().expect("it ends");
    leases(&lab, &["release", "10.244.1.0/24"]);
    lab.daemon(3).wait_ready(PATIENCE).expect("it is ready now");
    assert_eq!(status(&lab, 3)["subnets"], json("[\"10.244.1.0/24\"]"));
}

#[test]
fn expired_lease_is_recreated_and_conflicts_are_refused() {
    let lab = lab("expired", 2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#);
    start(&lab, 1);
    start(&lab, 2);
    let whole = || ping(&lab.pod(1).netns, Ping::to(lab.pod(2).v4)).expect("ping runs").is_whole();
    eventually("pings pass", whole);

    // The etcd lease of the key ends at once.
    let key = format!("{SUBNETS}/10.244.1.0-24");
    ask(&lab, async |mut client| {
        let found = client.get(key.clone(), None).await?;
        client.lease_revoke(found.kvs()[0].lease()).await.map(drop)
    });
    eventually("it is created again", || lab.daemon(1).log().contains("lease_recreated"));
    let recreated = ask(&lab, async |mut client| client.get(key.clone(), None).await);
    assert!(recreated.kvs()[0].lease() != 0, "with an etcd lease");
    eventually("pings pass", whole);

    // Another daemon with the address of h1 is refused. The error names both; no device is made.
    let output = run_to_its_end(&lab, 1, &["--node-name", "intruder", "--overlay-device", "hopsack9"]);
    for part in ["exit code 2", "node.public_ip", "h1", "intruder"] {
        assert!(output.contains(part), "{part}: {output}");
    }
    let devices = run(&lab.host(1).netns, &["ip", "-br", "link"]);
    assert!(!devices.contains("hopsack9"), "{devices}");
    assert!(whole(), "h1 is not disturbed");

    // A network configuration that flanneld would refuse as well.
    lab.daemon(2).terminate().expect("it ends");
    ask(&lab, async |mut client| {
        let bad = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.7"}"#;
        client.put("/coreos.com/network/config", bad, None).await
    });
    let output = run_to_its_end(&lab, 2, &[]);
    assert!(output.contains("exit code 2") && output.contains("SubnetMin"), "{output}");
    eventually("a running daemon reports it", || lab.daemon(1).log().contains("network_invalid"));
    assert_eq!(status(&lab, 1)["ready"], true);
}

#[test]
fn host_that_uses_our_subnet_is_named_and_stops_nothing() {
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
    let send = |from: &'static str| {
        let socket =
            in_netns(&lab.host(2).netns, move || UdpSocket::bind((from, 0))).expect("netns").expect("bound");
        for _ in 0..5 {
            socket.send_to(&packet, target).expect("sent");
        }
    };
    // A stranger is only counted: no alarm, no line in the log.
    let warnings = || lab.daemon(1).log().lines().filter(|line| !line.contains(" INFO ")).count();
    let lines = warnings();
    send("192.0.2.99");
    let counted = "hopsack_dropped_packets_total{direction=\"ingress\",reason=\"own_source\"} 5";
    eventually("it is counted", || metric(counted));
    // The daemon looks at the counters each second.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    assert!(status(&lab, 1)["alarm"].is_null() && metric("hopsack_own_subnet_alarm 0"));
    assert_eq!(warnings(), lines, "{}", lab.daemon(1).log());
    send("192.0.2.2");
    eventually("status names it", || status(&lab, 1)["alarm"].to_string().contains("h2"));
    let alarm = status(&lab, 1)["alarm"].as_str().expect("a sentence").to_owned();
    for part in ["h1", "192.0.2.1", "10.244.1.0/24"] {
        assert!(alarm.contains(part), "{part}: {alarm}");
    }
    assert!(lab.daemon(1).log().contains("duplicate_subnet"), "and so does the log");
    assert!(metric("hopsack_own_subnet_alarm 1"));
    assert!(metric("hopsack_dropped_packets_total{direction=\"ingress\",reason=\"own_source\"} 10"));
    let output = run(
        &lab.host(1).netns,
        &[HOPSACK, "status", "--config", &lab.daemon(1).config_path().display().to_string()],
    );
    assert!(output.contains("duplicate_subnet") && output.contains("h2"), "{output}");
    // The store was asked and says that our lease is ours: the node goes on and has written
    // nothing.
    assert_eq!((lab.daemon(1).pid(), &status(&lab, 1)["ready"]), (pid, &Value::Bool(true)));
    let after =
        ask(&lab, async |mut client| client.get(SUBNETS, Some(GetOptions::new().with_prefix())).await);
    let revisions =
        |got: &etcd_client::GetResponse| got.kvs().iter().map(|kv| kv.mod_revision()).collect::<Vec<_>>();
    assert_eq!(revisions(&before), revisions(&after));
}

#[test]
fn copied_state_directory_is_refused() {
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
    let log = lab.daemon(2).log();
    assert!(log.contains("node.state_dir") && log.contains("node-id"), "{log}");
    assert_eq!(lab.daemon(2).terminate().expect("it has ended").expect("it was ours").code(), Some(2));
    assert!(lab.daemon(1).log().contains("state_copied"), "{}", lab.daemon(1).log());
    assert_eq!(status(&lab, 1)["subnets"], json("[\"10.244.1.0/24\"]"));

    // The operator does what the error says.
    for name in ["node-id", "map"] {
        std::fs::remove_file(state(2).join(name)).expect("removed");
    }
    start(&lab, 2);
    let subnet = status(&lab, 2)["subnets"][0].as_str().expect("one").to_owned();
    assert_ne!(subnet, "10.244.1.0/24");
}
