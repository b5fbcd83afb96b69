//! Faults of etcd, which pods must not notice.
//!
//! Each test has a lab with an etcd of its own, and TCP running between two pods for the whole
//! test, with every byte compared. The etcd is killed, frozen, cut off, compacted or filled with
//! invalid keys; then TCP must have gone on without a reset, a lease that is written must reach
//! every host, the routes must be those of a fresh list, and no packet may be lost that is not
//! counted. No test asserts a time; waits have a patience, after which they fail.

mod support;

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, DeleteOptions, Txn, TxnOp};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Etcd, Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use serde_json::Value;
use support::{HOPSACK, Scrape, attempt, edit, http, json, run};

const SUBNETS: &str = "/coreos.com/network/subnets";
/// For what takes milliseconds, or the nine seconds in which a dead endpoint is noticed, on a
/// machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(40);

/// A lab with an etcd, and TCP that runs between its first two pods.
struct Chaos {
    lab: Lab,
    flow: Transfer,
    /// Leases of other hosts that were written so far.
    foreign_leases: u8,
}

impl Chaos {
    fn new(label: &str, hosts: u8, members: u8) -> Self {
        Self::on(label, hosts, members, "auto")
    }

    fn on(label: &str, hosts: u8, members: u8, engine: &str) -> Self {
        let store = Store::Etcd { members };
        let extra_config = format!("[dataplane]\nengine = \"{engine}\"\n");
        let lab = Lab::up(Options { hosts, store, extra_config, ..Options::unique(label, HOPSACK) })
            .expect("these tests need root, /dev/net/tun, ip, ping and etcd: run scripts/test");
        let flow = Flow {
            from: lab.pod(1),
            to: lab.pod(2),
            family: Family::V4,
            amount: Amount::Time(Duration::from_secs(600)),
            verify: true,
        };
        let flow = Transfer::start(flow).expect("TCP connects");
        let chaos = Self { lab, flow, foreign_leases: 0 };
        chaos.flows();
        chaos
    }

    /// Waits until TCP has moved more bytes.
    fn flows(&self) {
        let before = self.flow.received();
        let moved = || self.flow.received() > before + 100_000;
        eventually("bytes flow", || moved() || self.flow.is_done());
        assert!(moved(), "the connection has ended");
    }

    /// TCP moves bytes in each of so many seconds.
    fn flows_for(&self, seconds: u32) {
        for _ in 0..seconds {
            let begin = Instant::now();
            self.flows();
            sleep(Duration::from_secs(1).saturating_sub(begin.elapsed()));
        }
    }

    fn hosts(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.lab.hosts().len()
    }

    fn reports_outage(&self, host: usize) -> bool {
        self.lab.daemon(host).status().expect("it answers")["store_trouble"].is_string()
    }

    fn scrape(&self, host: usize) -> Scrape {
        Scrape::of(&self.lab.host(host).netns)
    }

    /// Waits until every host reports that etcd is away; all forward.
    fn all_report_the_outage(&self) {
        eventually("etcd's absence is noticed", || self.hosts().all(|host| self.reports_outage(host)));
        for host in self.hosts() {
            let status = self.lab.daemon(host).status().expect("it answers");
            assert_eq!(status["ready"], true, "{status}");
        }
        self.flows();
    }

    /// Writes the lease of a host that is not in the lab. Returns its subnet.
    fn add_foreign_lease(&mut self, member: usize) -> String {
        self.foreign_leases += 1;
        let number = 100 + self.foreign_leases;
        let value = format!(r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":null}}"#);
        let key = format!("{SUBNETS}/10.244.{number}.0-24");
        self.ask(member, async move |mut client| client.put(key, value, None).await.map(drop));
        format!("10.244.{number}.0/24")
    }

    /// Waits until no host reports a problem, changes arrive at every host, and routes are those of
    /// a fresh list.
    fn recovers(&mut self, member: usize) {
        eventually("every host is in order again", || self.hosts().all(|host| !self.reports_outage(host)));
        let news = self.add_foreign_lease(member);
        for host in self.hosts() {
            eventually("news arrive", || self.routes(host).iter().any(|(subnet, _)| *subnet == news));
        }
        self.agrees(member);
        self.flows();
    }

    /// Waits until the routes of every host are those of a fresh list.
    fn agrees(&self, member: usize) {
        for host in self.hosts() {
            let mut seen = (BTreeSet::new(), BTreeSet::new());
            let begin = Instant::now();
            while begin.elapsed() < PATIENCE {
                seen = (self.routes(host), self.listed(member));
                if seen.0 == seen.1 {
                    break;
                }
                sleep(Duration::from_millis(50));
            }
            assert_eq!(seen.0, seen.1, "routes of h{host}, and a fresh list");
        }
    }

    /// Subnets and hosts in the routes of a daemon.
    fn routes(&self, host: usize) -> BTreeSet<(String, String)> {
        let config = self.lab.daemon(host).config_path().display().to_string();
        let routes = run(&self.lab.host(host).netns, &[HOPSACK, "routes", "--json", "--config", &config]);
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let routes = json(&routes).as_array().expect("a list").clone();
        routes.iter().map(|route| (text(&route["subnet"]), text(&route["host"]))).collect()
    }

    /// Subnets and hosts in etcd.
    fn listed(&self, member: usize) -> BTreeSet<(String, String)> {
        let url = self.etcd(member).url();
        let argv = [HOPSACK, "leases", "list", "--json", "--store-endpoints", &url];
        let table = json(&run(&self.lab.underlay_netns(), &argv));
        let rows = table["leases"].as_array().expect("a list").clone();
        let row = |row: &Value| {
            let name = row["name"].as_str().expect("a string").to_owned();
            let subnets = row["subnets"].as_array().expect("a list").clone();
            subnets.into_iter().map(move |net| (net.as_str().expect("a string").to_owned(), name.clone()))
        };
        rows.iter().flat_map(row).collect()
    }

    fn etcd(&self, member: usize) -> &Etcd {
        self.lab.etcd(member)
    }

    /// Asks etcd by a client in its own namespace.
    fn ask<T: Send>(
        &self,
        member: usize,
        call: impl AsyncFnOnce(Client) -> Result<T, etcd_client::Error> + Send,
    ) -> T {
        let url = self.etcd(member).url();
        let asked = in_netns(&self.lab.underlay_netns(), || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
            runtime.block_on(async { call(Client::connect([url], None).await?).await })
        });
        asked.expect("the lab has the namespace").expect("etcd answers")
    }

    /// Drops what hosts and etcd send to each other. A client in the namespace of etcd still
    /// reaches it.
    fn cut(&self) {
        let rules = "table inet cut { chain input { type filter hook input priority 0; \
                     iifname br0 tcp dport 2379 drop; }; \
                     chain output { type filter hook output priority 0; \
                     oifname br0 tcp sport 2379 drop; }; }";
        run(&self.lab.underlay_netns(), &["nft", rules]);
    }

    fn mend(&self) {
        run(&self.lab.underlay_netns(), &["nft", "delete table inet cut"]);
    }

    /// TCP ends in order with every byte right, and each packet that one daemon sent and the other
    /// did not receive was counted.
    fn ends_well(self) {
        self.flow.finish();
        let moved = self.flow.wait().expect("not one reset, not one wrong byte");
        assert!(moved.bytes > 1_000_000, "{moved:?}");
        let Self { lab, .. } = self;
        for (from, to) in [(1, 2), (2, 1)] {
            let [from, to] = [from, to].map(|host| lab.host(host).netns.clone());
            let accounted = || {
                let (from, to) = (Scrape::of(&from), Scrape::of(&to));
                let arrived = to.get("hopsack_ingress_packets_total") + to.all_dropped("ingress");
                let lost = to.dropped("ingress", "socket_queue_full");
                // A kernel sends packets of its own when a link comes up, for example router
                // solicitations.
                let dropped = from.refused("egress") - from.dropped("egress", "multicast");
                (from.get("hopsack_egress_packets_total"), arrived + lost, dropped)
            };
            // A control message of a host that has just moved may be dropped too.
            eventually("what was sent has arrived or was counted", || {
                let (sent, arrived, _) = accounted();
                sent <= arrived
            });
            assert_eq!(accounted().2, 0, "no route was missing at any time");
        }
    }
}

on_every_engine! {
    host_changes_its_address
}

/// A host gets a new address, then one that it had before, then none for a while: TCP waits and
/// goes on.
fn host_changes_its_address(engine: &str) {
    let chaos = Chaos::on(&format!("moves-{engine}"), 3, 1, engine);
    let (netns, daemon) = (chaos.lab.host(1).netns.clone(), chaos.lab.daemon(1));
    // The lab configures the address; this host has to find it.
    edit(&daemon.config_path(), "public_ip  = \"192.0.2.1\"\n", "");
    daemon.kill9().expect("killed");
    daemon.start().expect("started");
    daemon.wait_ready(PATIENCE).expect("ready");
    let pid = daemon.pid();
    let ip = |argv: &str| {
        let argv: Vec<&str> = ["ip"].into_iter().chain(argv.split_whitespace()).collect();
        run(&netns, &argv);
    };
    let status = || daemon.status().expect("it answers");
    let told = |host: usize, address: &str| {
        let listed = json(&run(
            &chaos.lab.host(host).netns,
            &[
                HOPSACK,
                "peers",
                "--json",
                "--config",
                &chaos.lab.daemon(host).config_path().display().to_string(),
            ],
        ));
        listed.as_array().expect("a list").iter().any(|peer| peer["endpoint"] == format!("{address}:8285"))
    };
    let moved_to = |address: &str| {
        eventually("it is at the new address", || status()["public_ip"] == address);
        for host in [2, 3] {
            eventually("the others know", || told(host, address));
        }
        assert!(status()["underlay_trouble"].is_null(), "{}", status());
        chaos.flows();
    };
    chaos.flows();
    let lease = || {
        chaos.ask(1, async |mut client| {
            client.get(format!("{SUBNETS}/10.244.1.0-24&fd00:244:0:1::-64"), None).await
        })
    };
    let created = lease().kvs()[0].create_revision();

    // The host gets a new address.
    ip("addr del 192.0.2.1/24 dev eth0");
    ip("addr add 192.0.2.101/24 dev eth0");
    moved_to("192.0.2.101");

    // Another address appears: no reason to move, until the first one goes.
    run(&netns, &["sysctl", "-qw", "net.ipv4.conf.eth0.promote_secondaries=1"]);
    ip("addr add 192.0.2.102/24 dev eth0");
    chaos.flows_for(1);
    assert_eq!(status()["public_ip"], "192.0.2.101");
    ip("addr del 192.0.2.101/24 dev eth0");
    moved_to("192.0.2.102");

    // The host returns to addresses that it had before, also to the one that it started with.
    for (gone, back) in [(102, 101), (101, 1), (1, 102)] {
        ip(&format!("addr add 192.0.2.{back}/24 dev eth0"));
        ip(&format!("addr del 192.0.2.{gone}/24 dev eth0"));
        moved_to(&format!("192.0.2.{back}"));
    }

    // No address for longer than anything waits; then the same one again.
    ip("addr del 192.0.2.102/24 dev eth0");
    eventually("the problem is reported", || status()["problems"][0]["code"] == "underlay_address");
    assert_eq!(
        (&status()["ready"], &status()["public_ip"]),
        (&Value::Bool(true), &Value::from("192.0.2.102"))
    );
    sleep(Duration::from_secs(2));
    ip("addr add 192.0.2.102/24 dev eth0");
    eventually("all is in order", || status()["underlay_trouble"].is_null());
    chaos.flows();

    // The MTU of the underlay shrinks, and grows again.
    for (mtu, inner) in [(1400, 1372), (1500, 1472)] {
        ip(&format!("link set eth0 mtu {mtu}"));
        eventually("the overlay follows", || status()["mtu"] == inner);
        let device = json(&run(&netns, &["ip", "-j", "link", "show", "hopsack0"]));
        assert_eq!(device[0]["mtu"], inner);
        chaos.flows();
    }
    assert_eq!(daemon.pid(), pid, "without a restart");
    let key = lease();
    assert_eq!(key.kvs()[0].create_revision(), created, "the same key all the time");
    assert!(key.kvs()[0].value_str().expect("text").contains("192.0.2.102"));

    // An address that the configuration names is the only one that is used.
    let (second, status) =
        (chaos.lab.host(2).netns.clone(), || chaos.lab.daemon(2).status().expect("it answers"));
    run(&second, &["sh", "-c", "ip addr del 192.0.2.2/24 dev eth0 && ip addr add 192.0.2.200/24 dev eth0"]);
    eventually("the problem is reported", || status()["problems"][0]["code"] == "underlay_address");
    assert_eq!((&status()["ready"], &status()["public_ip"]), (&Value::Bool(true), &Value::from("192.0.2.2")));
    run(&second, &["ip", "addr", "add", "192.0.2.2/24", "dev", "eth0"]);
    eventually("all is in order", || status()["underlay_trouble"].is_null());
    chaos.flows();
    chaos.flow.finish();
    chaos.flow.wait().expect("not one reset, not one wrong byte");
}

/// Waits until it holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn etcd_is_killed_and_started_again() {
    let mut chaos = Chaos::new("killed", 3, 1);
    for _ in 0..2 {
        chaos.etcd(1).kill9().expect("killed");
        chaos.all_report_the_outage();
        chaos.flows_for(2);
        chaos.etcd(1).start().expect("started");
        chaos.etcd(1).wait_ready(PATIENCE).expect("it serves");
        chaos.recovers(1);
    }
    chaos.ends_well();
}

#[test]
fn frozen_etcd_is_noticed() {
    let mut chaos = Chaos::new("frozen", 2, 1);
    chaos.etcd(1).freeze().expect("frozen");
    chaos.flows_for(30);
    // The connections stay open: only missing answers show that etcd is frozen.
    chaos.all_report_the_outage();
    chaos.etcd(1).thaw().expect("thawed");
    chaos.recovers(1);
    chaos.ends_well();
}

#[test]
fn etcd_is_cut_off_and_compacted() {
    let mut chaos = Chaos::new("cut", 2, 1);
    let compacted = "hopsack_store_resyncs_total{cause=\"compacted\"}";
    for forgets in [false, true] {
        let before: Vec<u64> = chaos.hosts().map(|host| chaos.scrape(host).get(compacted)).collect();
        chaos.cut();
        chaos.add_foreign_lease(1);
        chaos.add_foreign_lease(1);
        let gone = format!("{SUBNETS}/10.244.{}.0-24", 100 + chaos.foreign_leases);
        chaos.ask(1, async move |mut client| {
            let deleted = client.delete(gone, None).await?;
            if forgets {
                let revision = deleted.header().expect("a header").revision();
                client.compact(revision, None).await?;
            }
            Ok(())
        });
        // A minute, and long enough to be noticed.
        chaos.flows_for(if forgets { 60 } else { 10 });
        chaos.all_report_the_outage();
        chaos.mend();
        chaos.recovers(1);
        for (host, before) in chaos.hosts().zip(before) {
            let after = chaos.scrape(host).get(compacted);
            assert_eq!(after, before + u64::from(forgets), "h{host} lists again only if it must");
        }
    }
    chaos.ends_well();
}

#[test]
fn daemon_starts_and_forwards_without_etcd() {
    let mut chaos = Chaos::new("away", 3, 1);
    let saved = chaos.lab.host(1).directory.join("state/map");
    // The map on disk is written within seconds.
    eventually("the map is on disk, with all hosts", || {
        let has_all = |map: String| map.contains("10.244.2.0-24") && map.contains("10.244.3.0-24");
        std::fs::read_to_string(&saved).is_ok_and(has_all)
    });
    chaos.etcd(1).kill9().expect("killed");
    chaos.all_report_the_outage();
    let daemon = chaos.lab.daemon(1);
    daemon.kill9().expect("killed");
    daemon.start().expect("started");
    daemon.wait_ready(PATIENCE).expect("ready, from the map on disk");
    chaos.flows_for(3);
    let status = daemon.status().expect("it answers");
    assert_eq!(status["problems"][0]["code"], "store_unavailable", "{status}");
    assert_eq!(chaos.routes(1), chaos.routes(2), "the map on disk is the last one");

    chaos.etcd(1).start().expect("started");
    chaos.etcd(1).wait_ready(PATIENCE).expect("it serves");
    chaos.recovers(1);
    chaos.flow.finish();
    chaos.flow.wait().expect("not one reset, not one wrong byte");
}

/// Number of keys that a daemon reports as invalid.
fn bad_keys(chaos: &Chaos, host: usize) -> usize {
    let metrics = http(&chaos.lab.host(host).netns, "/metrics");
    let value = metrics.lines().find_map(|line| line.strip_prefix("hopsack_store_bad_keys "));
    let value = value.and_then(|value| value.strip_suffix(".0")?.parse().ok());
    value.unwrap_or_else(|| panic!("no such metric: {metrics}"))
}

#[test]
fn invalid_keys_cost_no_valid_lease() {
    let mut chaos = Chaos::new("rubbish", 2, 1);
    let mut rubbish: Vec<(String, Vec<u8>)> = Vec::new();
    for number in 110..130 {
        let key = |name: String| format!("{SUBNETS}/{name}");
        rubbish.extend([
            (key(format!("10.244.{number}.0-24")), b"{".to_vec()),
            (
                key(format!("10.244.{number}.0-33")),
                br#"{"PublicIP":"192.0.2.99","PublicIPv6":null}"#.to_vec(),
            ),
            (key(format!("garbage-{number}")), vec![0xff; 64]),
            (key(format!("10.99.{number}.0-24")), br#"{"PublicIP":"300.0.2.99"}"#.to_vec()),
            (format!("{SUBNETS}-{number}/10.244.{number}.0-24"), vec![0; 4096]),
        ]);
    }
    assert_eq!(rubbish.len(), 100);
    chaos.ask(1, async move |mut client| {
        let puts: Vec<TxnOp> = rubbish.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
        client.txn(Txn::new().and_then(puts)).await.map(drop)
    });
    chaos.recovers(1);
    chaos.flows_for(3);
    let url = chaos.etcd(1).url();
    let argv = [HOPSACK, "leases", "list", "--json", "--store-endpoints", &url];
    let bad = json(&run(&chaos.lab.underlay_netns(), &argv))["bad"].as_array().map_or(0, Vec::len);
    assert!(bad >= 60, "{bad} keys are reported by name");
    for host in chaos.hosts() {
        eventually("they are counted", || bad_keys(&chaos, host) == bad);
    }
    chaos.ask(1, async |mut client| {
        let range = DeleteOptions::new().with_range(format!("{SUBNETS}/h"));
        client.delete(format!("{SUBNETS}/garbage"), Some(range)).await.map(drop)
    });
    for host in chaos.hosts() {
        eventually("they are gone", || bad_keys(&chaos, host) == bad - 20);
    }
    chaos.recovers(1);
    chaos.ends_well();
}

#[test]
fn host_that_lost_its_lease_stops() {
    let chaos = Chaos::new("stolen", 3, 1);
    let key = format!("{SUBNETS}/10.244.3.0-24&fd00:244:0:3::-64");
    chaos.ask(1, async move |mut client| {
        // A flanneld takes over: it writes without a condition. The comparison only makes sure that
        // the key is the right one.
        let there = Compare::version(key.clone(), CompareOp::Greater, 0);
        let thief = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null}"#;
        let written = client.txn(Txn::new().when([there]).and_then([TxnOp::put(key, thief, None)])).await?;
        assert!(written.succeeded(), "h3 has a lease");
        Ok(())
    });
    let daemon = chaos.lab.daemon(3);
    eventually("the daemon ends", || daemon.pid().is_none());
    let status = daemon.terminate().expect("it has ended").expect("it was ours");
    assert_eq!(status.code(), Some(1));
    let log = daemon.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.contains("192.0.2.3") && last.contains("192.0.2.99") && last.contains("10.244.3.0/24"),
        "{log}"
    );
    let device = attempt(&chaos.lab.host(3).netns, &["ip", "link", "show", "hopsack0"]);
    assert!(device.contains("does not exist"), "the device is removed: {device}");

    // The other hosts follow etcd.
    let listed = chaos.listed(1);
    assert!(listed.contains(&("10.244.3.0/24".into(), "192.0.2.99".into())), "{listed:?}");
    for host in [1, 2] {
        // A flanneld gets IPv4 only.
        let v4 = |routes: &BTreeSet<(String, String)>| {
            routes.iter().filter(|(subnet, _)| !subnet.contains(':')).cloned().collect::<Vec<_>>()
        };
        eventually("the others follow", || v4(&chaos.routes(host)) == v4(&listed));
    }
    chaos.ends_well();
}

#[test]
fn etcd_of_three_loses_a_member_and_the_leader() {
    let mut chaos = Chaos::new("members", 2, 3);
    // The daemons talk to the first member.
    chaos.etcd(1).kill9().expect("killed");
    chaos.flows_for(2);
    chaos.recovers(2);
    chaos.etcd(1).start().expect("started");
    chaos.etcd(1).wait_ready(PATIENCE).expect("it serves");

    let leads = |member: usize| {
        chaos.ask(member, async |mut client| {
            let status = client.status().await?;
            Ok(status.leader() == status.header().expect("a header").member_id())
        })
    };
    let leader = (1..=3).find(|member| leads(*member)).expect("one leads");
    chaos.etcd(leader).kill9().expect("killed");
    chaos.flows_for(3);
    let other = leader % 3 + 1;
    chaos.etcd(other).wait_ready(PATIENCE).expect("another leads");
    chaos.recovers(other);
    chaos.ends_well();
}
