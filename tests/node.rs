//! The daemon as a process: start, kill, restart, reload, stop, and why it refuses to start.

mod support;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use etherparse::PacketBuilder;
use hopsack::lab::ping::{Ping, Pinger, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use support::{HOPSACK, Scrape, attempt, edit, eventually, hopsack, http, json, lab, lab_on, run, text};

const READY: Duration = Duration::from_secs(10);

on_every_engine! {
    tcp_survives_kill_9_and_device_is_adopted
    million_forged_datagrams_are_all_counted
    removed_device_ends_the_daemon
    pings_are_lost_only_while_the_daemon_is_down
}

fn tcp_survives_kill_9_and_device_is_adopted(engine: &str) {
    let lab = lab_on(engine, "kill9", 2, Family::V4);
    let host = lab.host(1).netns.clone();
    let device = || json(&run(&host, &["ip", "-j", "-d", "addr", "show", "hopsack0"]))[0].clone();
    let routes = || {
        let all = json(&run(&host, &["ip", "-j", "route", "show", "dev", "hopsack0"]));
        let all6 = json(&run(&host, &["ip", "-j", "-6", "route", "show", "dev", "hopsack0"]));
        (all, all6)
    };
    let (device_before, routes_before) = (device(), routes());

    let flow = Flow {
        from: lab.pod(1),
        to: lab.pod(2),
        family: Family::V4,
        amount: Amount::Time(Duration::from_secs(60)),
        verify: true,
    };
    let transfer = Transfer::start(flow).expect("TCP connects");
    for _ in 0..3 {
        let before = transfer.received();
        eventually("bytes flow", || transfer.received() > before + 1_000_000);
        lab.daemon(1).kill9().expect("killed");
        // While no process has the device open its route stays, so that no packet of a pod leaves
        // by another device.
        assert_eq!(routes().0.as_array().map(Vec::len), routes_before.0.as_array().map(Vec::len));
        lab.daemon(1).start().expect("started");
        lab.daemon(1).wait_ready(READY).expect("ready");
    }
    let before = transfer.received();
    eventually("bytes flow again", || transfer.received() > before + 1_000_000);
    transfer.finish();
    let moved = transfer.wait().expect("not one reset, not one wrong byte");
    assert!(moved.bytes > 3_000_000);

    assert_eq!(device()["ifindex"], device_before["ifindex"], "the same device");
    assert_eq!(
        device()["addr_info"].as_array().map(Vec::len),
        device_before["addr_info"].as_array().map(Vec::len)
    );
    assert_eq!(routes(), routes_before, "no route twice");
}

#[test]
fn stop_leaves_everything_and_clean_removes_it() {
    let lab = lab("stop", 1, Family::V4);
    let (host, daemon) = (&lab.host(1).netns, lab.daemon(1));
    let config = daemon.config_path().to_string_lossy().into_owned();
    let there = || attempt(host, &["ip", "link", "show", "hopsack0"]).contains("mtu");

    // SIGTERM ends the control socket. Everything else stays for the next start.
    let index = || json(&run(host, &["ip", "-j", "link", "show", "hopsack0"]))[0]["ifindex"].clone();
    let routes = || run(host, &["ip", "route", "show", "dev", "hopsack0"]);
    let before = (index(), routes());
    assert!(there() && daemon.control_path().exists());
    let status = daemon.terminate().expect("it ends").expect("it is our child");
    assert_eq!(status.code(), Some(0));
    assert!(there() && !daemon.control_path().exists());
    assert!(!before.1.is_empty() && before == (index(), routes().replace(" linkdown", "")), "{}", routes());
    assert!(lab.host(1).directory.join("subnet.env").exists());

    // After kill -9 the socket stays too.
    daemon.start().expect("started");
    daemon.wait_ready(READY).expect("ready");
    assert_eq!(before, (index(), routes()), "the same device");
    let refused = attempt(host, &[HOPSACK, "clean", "--config", &config]);
    assert!(is(&refused, "daemon_runs"), "clean must not pull the device from a daemon: {refused}");
    daemon.kill9().expect("killed");
    assert!(there() && daemon.control_path().exists());
    let dry = run(host, &[HOPSACK, "clean", "--dry-run", "--config", &config]);
    assert!(dry.contains("hopsack0") && there(), "{dry}");
    let cleaned = json(&run(host, &[HOPSACK, "clean", "--json", "--config", &config]));
    assert_eq!(
        cleaned.as_array().map(Vec::len),
        Some(6),
        "fast path, its mount, device, socket, subnet.env and its copy: {cleaned}"
    );
    assert!(!there() && !daemon.control_path().exists());
    assert!(!lab.host(1).directory.join("subnet.env").exists());
    let again = json(&run(host, &[HOPSACK, "clean", "--json", "--config", &config]));
    assert_eq!(again, serde_json::json!([]), "nothing is left");

    // The daemon starts again from nothing.
    daemon.start().expect("started");
    daemon.wait_ready(READY).expect("ready");
    assert!(there());
    daemon.terminate().expect("it ends");

    // With an option, the daemon removes device and routes itself. subnet.env stays, as Flannel's
    // does.
    let mut child = Stopped(
        Command::new("ip")
            .args(["netns", "exec", host, HOPSACK, "run", "--remove-on-exit", "--config", &config])
            .stderr(Stdio::null())
            .spawn()
            .expect("ip runs"),
    );
    eventually("it is ready", || daemon.status().is_ok_and(|status| status["ready"] == true));
    run(host, &["kill", "-TERM", &child.0.id().to_string()]);
    assert!(child.0.wait().expect("it ends").success());
    assert!(!there() && !daemon.control_path().exists());
    assert!(lab.host(1).directory.join("subnet.env").exists());
}

#[test]
fn disturbed_kernel_objects_are_repaired() {
    let lab = lab("repair", 2, Family::V4);
    let netns = lab.host(1).netns.clone();
    let pods_reach_each_other = || {
        [lab.pod(2).v4.into(), lab.pod(2).v6.into()].into_iter().all(|to: IpAddr| {
            ping(&lab.pod(1).netns, Ping { count: 2, ..Ping::to(to) }).expect("ping runs").is_whole()
        })
    };
    let file = lab.host(1).directory.join("subnet.env");
    let show = |argv: &[&str]| json(&run(&netns, argv));
    let state = || {
        let forward = run(&netns, &["sysctl", "-n", "net.ipv4.ip_forward"]);
        (
            show(&["ip", "-j", "addr", "show", "hopsack0"]),
            show(&["ip", "-j", "route", "show", "dev", "hopsack0"]),
            show(&["ip", "-j", "-6", "route", "show", "dev", "hopsack0", "proto", "182"]),
            (forward, std::fs::read_to_string(&file).ok()),
        )
    };
    let before = state();
    let repairs =
        |object: &str| Scrape::of(&netns).get(&format!("hopsack_repairs_total{{object=\"{object}\"}}"));
    // The kernel gives no notice of the file: the next turn of the timer finds it.
    let file_goes = format!("rm {}", file.display());
    for (object, disturbance, seconds) in [
        ("link", "ip link set hopsack0 down", 1),
        ("route", "ip link set hopsack0 down; ip link set hopsack0 up", 1),
        ("link", "ip link set hopsack0 mtu 9000", 1),
        ("address", "ip addr flush dev hopsack0", 1),
        ("route", "ip route flush dev hopsack0", 1),
        ("sysctl", "sysctl -qw net.ipv4.ip_forward=0", 1),
        ("file", &file_goes, 10),
    ] {
        let count = repairs(object);
        run(&netns, &["sh", "-c", disturbance]);
        within(10 * seconds, disturbance, || repairs(object) > count && state() == before);
        assert!(pods_reach_each_other(), "after {disturbance}");
    }

    // The file cannot be written while the MTU changes.
    run(&netns, &["sh", "-c", &format!("rm {0} && mkdir {0} && ip link set eth0 mtu 1400", file.display())]);
    let failed = || {
        let problems = lab.daemon(1).status().expect("it answers")["problems"].clone();
        let problems = problems.as_array().expect("a list").clone();
        let object = file.display().to_string();
        problems.iter().any(|problem| problem["code"] == "repair_failed" && problem["object"] == object)
    };
    eventually("the problem is reported", failed);
    assert!(http(&netns, "/readyz").contains("repair_failed"));
    std::fs::remove_dir(&file).expect("removed");
    within(100, "the file is written after all", || {
        !failed() && std::fs::read_to_string(&file).is_ok_and(|text| text.contains("FLANNEL_MTU=1372"))
    });
    assert!(pods_reach_each_other());
}

/// Repeats a check until it succeeds. Fails after this number of seconds.
fn within(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not true within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn underlay_problems_end_with_their_cause() {
    let lab = lab("broken-link", 2, Family::V4);
    let (netns, cable) = (lab.host(1).netns.clone(), lab.underlay_netns());
    let has = |code: &str| {
        let status = lab.daemon(1).status().expect("it answers");
        status["problems"].as_array().expect("a list").iter().any(|problem| problem["code"] == code)
    };
    let pings = || {
        let few = Ping { count: 2, ..Ping::to(lab.pod(2).v4) };
        ping(&lab.pod(1).netns, few).expect("ping runs").is_whole()
    };
    let sh = |netns: &str, script: &str| drop(run(netns, &["sh", "-c", script]));
    let filter = "nft 'add table inet t; add chain inet t out { type filter hook output priority 0; }; \
                  add rule inet t out udp dport 8285 drop'";
    for (place, broken, code, mended) in [
        (&netns, "ip link set eth0 down", "underlay_link", "ip link set eth0 up"),
        (&cable, "ip link set h1 down", "underlay_link", "ip link set h1 up"),
        (&netns, filter, "send_refused", "nft delete table inet t"),
    ] {
        sh(place, broken);
        eventually(broken, || {
            let _ = pings();
            has(code)
        });
        assert!(http(&netns, "/readyz").contains(code), "{broken}");
        sh(place, mended);
        within(100, mended, || !has(code) && pings());
    }
}

/// Our address is on `lo`, where a routing daemon would announce it: the MTU is that of the way to
/// the peers.
#[test]
fn mtu_is_that_of_the_way_to_the_peers() {
    let options = Options { hosts: 2, ..Options::unique("anycast", HOPSACK) };
    let lab = Lab::create(options).expect("a lab");
    let (one, two) = (lab.host(1).netns.clone(), lab.host(2).netns.clone());
    run(&one, &["ip", "addr", "add", "198.51.100.1/32", "dev", "lo"]);
    run(&two, &["ip", "route", "add", "198.51.100.1", "via", "192.0.2.1"]);
    edit(&lab.cluster_path(), "\"192.0.2.1\"", "\"198.51.100.1\"");
    let config = lab.daemon(1).config_path();
    edit(&config, "\"192.0.2.1\"", "\"198.51.100.1\"");
    edit(&config, "\"eth0\"", "\"auto\"");
    lab.start().expect("started");
    let status = || lab.daemon(1).status().expect("it answers");
    assert_eq!(status()["mtu"], 1472);
    let few = Ping { count: 3, ..Ping::to(lab.pod(2).v4) };
    assert!(ping(&lab.pod(1).netns, few).expect("ping runs").is_whole());
    run(&one, &["ip", "link", "set", "eth0", "mtu", "1400"]);
    eventually("the overlay follows", || status()["mtu"] == 1372);
}

/// A host that starts before its network waits, and answers meanwhile.
#[test]
fn temporary_conditions_at_start_are_waited_for() {
    let bench = Bench::new("early");
    let (netns, daemon) = (bench.netns().to_owned(), bench.lab.daemon(1));
    let sh = |script: &str| drop(run(&netns, &["sh", "-c", script]));
    let config = bench.config.to_string_lossy().into_owned();
    let underlay_error = || {
        let findings = json(&attempt(&netns, &[HOPSACK, "check", "--json", "--config", &config]));
        finding(&findings, "underlay")["error"].clone()
    };
    let original = std::fs::read_to_string(&bench.config).expect("the configuration");
    let without_address = original.replace("\"192.0.2.1\"", "\"auto\"");
    let automatic = without_address.replace("\"eth0\"", "\"auto\"");
    for (file, broken, error, mended) in [
        (
            &original,
            "ip addr del 192.0.2.1/24 dev eth0",
            "address_not_on_host",
            "ip addr add 192.0.2.1/24 dev eth0",
        ),
        (
            &original,
            "ip link set eth0 down; ip link set eth0 name late0",
            "no_such_interface",
            "ip link set late0 name eth0; ip link set eth0 up",
        ),
        (
            &automatic,
            "true",
            "no_default_route",
            "ip route add default nexthop via 192.0.2.250 dev eth0 nexthop via 192.0.2.251 dev eth0",
        ),
        (
            &without_address,
            "ip addr flush dev eth0 scope global",
            "interface_without_address",
            "ip addr add 192.0.2.1/24 dev eth0",
        ),
        (
            &without_address,
            "sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.eth0.dad_transmits=600; \
             ip addr add 2001:db8::7/64 dev eth0",
            "address_tentative",
            "ip addr del 2001:db8::7/64 dev eth0",
        ),
    ] {
        std::fs::write(&bench.config, file).expect("written");
        sh(broken);
        daemon.start().expect("started");
        eventually(broken, || daemon.control_path().exists());
        // Longer than the time between two looks at the interfaces.
        std::thread::sleep(Duration::from_millis(800));
        assert!(daemon.status().is_err() && http(&netns, "/readyz").contains(" 503 "), "{broken}");
        assert_eq!(underlay_error(), error, "{broken}");
        assert!(daemon.pid().is_some(), "it ended: {}", daemon.log());
        sh(mended);
        daemon.wait_ready(READY).expect("ready");
        daemon.terminate().expect("it ends");
    }
}

/// What `run` refuses is found by `check`, with the same code, and what `run` can do without is
/// not.
#[test]
fn check_and_run_agree() {
    let bench = Bench::new("agree");
    let (netns, config) = (bench.netns().to_owned(), bench.config.to_string_lossy().into_owned());
    let sh = |script: &str| drop(run(&netns, &["sh", "-c", script]));
    let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$@\"";
    let read_only = ["unshare", "--mount", "sh", "-c", read_only, "sh"];
    let errors = |before: &[&str], options: &[&str]| -> Vec<String> {
        let check = [HOPSACK, "check", "--json", "--config", &config];
        let findings = json(&attempt(&netns, &[before, &check[..], options].concat()));
        let rows = findings.as_array().expect("a list");
        rows.iter().filter_map(|row| Some(row["error"].as_str()?.to_owned())).collect()
    };
    let none: &[&str] = &[];
    let state = bench.lab.host(1).directory.join("state");
    let certificate = format!("mkdir -p {0}; echo no certificate > {0}/node.crt", state.display());
    let no_certificate = format!("rm {}/node.crt", state.display());
    let taken = in_netns(&netns, || UdpSocket::bind("192.0.2.1:8286")).expect("netns").expect("bound");
    let quic: &[&str] = &["--security-mode", "quic"];
    let refusal = bench.refused(none, quic, 1);
    assert!(is(&refusal, "quic_bind"), "{refusal}");
    assert_eq!(errors(none, quic), ["quic_bind"]);
    drop(taken);
    for (before, options, setup, undo, error, code) in [
        (
            none,
            none,
            "ip route add 10.244.0.0/16 via 192.0.2.9",
            "ip route del 10.244.0.0/16",
            "route_foreign",
            1,
        ),
        (
            &read_only,
            none,
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.ip_forward=1",
            "sysctl_write",
            1,
        ),
        (none, &["--overlay-mtu", "1473"], "true", "true", "mtu_too_large", 2),
        (none, &["--store-path", "/nowhere"], "true", "true", "cluster_file_unreadable", 2),
        (none, &["--node-subnet-env", "/proc/nowhere/subnet.env"], "true", "true", "file_write", 1),
        (none, none, "ip link add hopsack0 type bridge", "ip link del hopsack0", "device_foreign", 1),
        (
            none,
            &["--security-mode", "sealed", "--security-cert", "/nowhere/c", "--security-key", "/nowhere/k"],
            "true",
            "true",
            "pki_read",
            2,
        ),
        (
            none,
            &["--security-mode", "sealed", "--node-state-dir", "/proc/nowhere"],
            "true",
            "true",
            "pki_write",
            2,
        ),
        (none, &["--security-mode", "sealed"], &certificate, &no_certificate, "pki_no_certificate", 2),
    ] {
        sh(setup);
        let refusal = bench.refused(before, options, code);
        assert!(is(&refusal, error), "{setup} {options:?}: {refusal}");
        assert_eq!(errors(before, options), [error], "{setup} {options:?}");
        sh(undo);
    }
    for (before, setup, undo, problem) in [
        (
            &read_only[..],
            "sysctl -qw net.ipv4.conf.default.accept_local=1 net.ipv6.conf.default.addr_gen_mode=1",
            "sysctl -qw net.ipv4.conf.default.accept_local=0 net.ipv6.conf.default.addr_gen_mode=0",
            None,
        ),
        (
            none,
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0",
            Some("repair_failed"),
        ),
    ] {
        sh(setup);
        assert_eq!(errors(before, none), [""; 0], "{setup}");
        let argv = [&["netns", "exec", &netns][..], before, &[HOPSACK, "run", "--config", &config]].concat();
        let child = Command::new("ip").args(argv).stderr(Stdio::null()).spawn().expect("ip runs");
        let mut child = Stopped(child);
        let status = || bench.lab.daemon(1).status();
        eventually(setup, || status().is_ok_and(|status| status["ready"] == true));
        let codes = status().expect("it answers")["problems"].clone();
        let found = codes.as_array().expect("a list").first().map(|problem| problem["code"].clone());
        assert_eq!(found, problem.map(Into::into), "{setup}: {codes}");
        let pod = &bench.lab.pod(1).netns;
        assert!(ping(pod, Ping::to(bench.lab.host(1).subnet_v4.network())).expect("ping runs").is_whole());
        run(&netns, &["kill", "-TERM", &child.0.id().to_string()]);
        child.0.wait().expect("it ends");
        sh(undo);
    }
}

/// Mistakes of newcomers get an answer that says what to do, and programs get JSON values.
#[test]
fn commands_name_mistakes_and_print_json_values() {
    let bench = Bench::new("mistakes");
    let config = bench.config.to_string_lossy().into_owned();
    let said = attempt(bench.netns(), &[HOPSACK, "leases", "list", "--config", &config]);
    assert!(is(&said, "store_without_leases"), "{said}");

    let rows = json(&run(bench.netns(), &[HOPSACK, "config", "--json", "--config", &config]));
    let value = |key: &str| {
        let rows = rows.as_array().expect("a list");
        rows.iter().find(|row| row["key"] == key).expect("the key")["value"].clone()
    };
    assert_eq!(value("overlay.port"), 8285);
    assert_eq!(value("node.interface"), "eth0");
    assert!(value("dataplane.offload").is_boolean() && value("store.endpoints").is_array());

    let misspelt = Command::new(HOPSACK)
        .args(["config", "--config", &config])
        .env("HOPSACK_OVERLAY_PROT", "9")
        .output()
        .expect("it runs");
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(is(&text(&misspelt), "config_variable"), "{}", text(&misspelt));
}

#[test]
fn edit_takes_effect_at_once_and_a_bad_one_never() {
    let lab = lab("edit", 2, Family::V4);
    let (netns, cluster) = (lab.host(1).netns.clone(), lab.cluster_path());
    let status = || lab.daemon(1).status().expect("it answers");
    let whole = || {
        ping(&lab.pod(1).netns, Ping { count: 3, ..Ping::to(lab.pod(2).v4) }).expect("ping runs").is_whole()
    };
    assert_eq!(status()["peers"], 1);

    // A bad edit is refused with line and column, and forwarding goes on.
    edit(&cluster, "10.244.2.0/24", "10.244.2.0/2four");
    eventually("the bad edit is reported", || status()["store_trouble"].is_string());
    let trouble = status()["store_trouble"].to_string();
    assert!(
        trouble.contains("line ") && trouble.contains("column ") && trouble.contains("2four"),
        "{trouble}"
    );
    assert_eq!(Scrape::of(&netns).get("hopsack_store_connected"), 0);
    assert!(status()["ready"].as_bool().expect("a bool") && whole());

    // The edit is corrected, and one host is added.
    edit(&cluster, "10.244.2.0/2four", "10.244.2.0/24");
    let mut file = std::fs::OpenOptions::new().append(true).open(&cluster).expect("the cluster file");
    writeln!(file, "[[hosts]]\nname = \"h9\"\npublic = [\"192.0.2.9\"]\nsubnets = [\"10.244.9.0/24\"]")
        .expect("written");
    eventually("the new host is a peer", || status()["peers"] == 2);
    assert!(status()["store_trouble"].is_null() && whole());

    // The host is removed, and SIGHUP makes the daemon read the file.
    let text = std::fs::read_to_string(&cluster).expect("the cluster file");
    let (without, _) = text.split_once("[[hosts]]\nname = \"h9\"").expect("it is there");
    std::fs::write(&cluster, without).expect("written");
    let pid = lab.daemon(1).pid().expect("it runs").to_string();
    run(&netns, &["kill", "-HUP", &pid]);
    eventually("the host is gone", || status()["peers"] == 1);
    assert!(lab.daemon(1).log().contains("SIGHUP"));

    // A missing file does not interrupt forwarding either.
    std::fs::remove_file(&cluster).expect("removed");
    eventually("that is reported", || status()["store_trouble"].is_string());
    assert!(whole());
}

#[test]
fn commands_and_metrics_report_the_same() {
    let lab = lab("tell", 3, Family::V4);
    let netns = &lab.host(1).netns;
    let config = lab.daemon(1).config_path().to_string_lossy().into_owned();
    assert!(
        ping(&lab.pod(1).netns, Ping { count: 3, ..Ping::to(lab.pod(2).v4) }).expect("ping runs").is_whole()
    );
    let ask = |command: &str| json(&run(netns, &[HOPSACK, command, "--json", "--config", &config]));
    let table = |command: &str| run(netns, &[HOPSACK, command, "--config", &config]);

    let status = ask("status");
    assert_eq!((&status["ready"], &status["peers"]), (&true.into(), &2.into()));
    assert!(table("status").contains("10.244.1.0/24"));
    assert_eq!(ask("peers").as_array().map(Vec::len), Some(2));
    assert!(table("peers").contains("192.0.2.2:8285"));
    assert_eq!(ask("routes").as_array().map(Vec::len), Some(6), "three hosts, two families");
    assert!(table("routes").contains("local"));
    let drops = ask("drops");
    let of_scrape = Scrape::of(netns);
    for drop in drops.as_array().expect("a list") {
        let (direction, reason) =
            (drop["direction"].as_str().expect("text"), drop["reason"].as_str().expect("text"));
        assert_eq!(of_scrape.dropped(direction, reason), drop["packets"].as_u64().expect("a number"));
    }
    assert!(of_scrape.get("hopsack_egress_packets_total") >= 3);
    let origin = ask("config");
    let port = origin.as_array().and_then(|rows| rows.iter().find(|row| row["key"] == "overlay.port"));
    assert_eq!(port.expect("listed")["origin"], format!("from {config}"));
    let pid = lab.daemon(1).pid().expect("it runs").to_string();
    let checked = ask("check");
    let daemon = finding(&checked, "daemon");
    assert!(daemon["answer"].as_str().is_some_and(|answer| answer.contains(&pid)), "{daemon}");

    assert!(http(netns, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(http(netns, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(http(netns, "/metrics").contains("application/openmetrics-text"));
    assert!(http(netns, "/metrics").trim_end().ends_with("# EOF"));
    assert!(http(netns, "/nowhere").starts_with("HTTP/1.1 404"));
    // An invalid request is answered, and the daemon goes on.
    let error = lab.daemon(1).ask("{\"command\":\"reboot\"}").expect_err("no such command").to_string();
    assert!(error.contains("reboot"), "{error}");
    assert_eq!(lab.daemon(1).status().expect("it still answers")["ready"], true);
    let env = std::fs::read_to_string(lab.host(1).directory.join("subnet.env")).expect("written");
    assert!(env.starts_with("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"), "{env}");
}

/// A million datagrams come to the port, from a peer and from unknown addresses. The daemon's
/// counters must add up to the last one.
fn million_forged_datagrams_are_all_counted(engine: &str) {
    const TOTAL: u64 = 1_000_000;
    let lab = lab_on(engine, "forged", 2, Family::V4);
    let (target, host) = (SocketAddr::new(lab.host(1).public, 8285), lab.host(1).netns.clone());
    let unknown: IpAddr = [192, 0, 2, 99].into();
    run(&lab.host(2).netns, &["ip", "addr", "add", "192.0.2.99/24", "dev", "eth0"]);
    // The pod must not answer: answers would be counted as well.
    run(&lab.pod(1).netns, &["ip", "route", "del", "default"]);
    let rx_packets = || {
        let link = json(&run(&host, &["ip", "-j", "-s", "link", "show", "hopsack0"]));
        link[0]["stats64"]["rx"]["packets"].as_u64().expect("a number")
    };
    let memory = || {
        let pid = lab.daemon(1).pid().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("there is such a line");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("in kB")
    };
    let (before, device_before, memory_before) = (Scrape::of(&host), rx_packets(), memory());

    let peer = lab.host(2).public;
    let bind = |address: IpAddr| {
        in_netns(&lab.host(2).netns, move || UdpSocket::bind((address, 0))).expect("netns").expect("bound")
    };
    let (peer, unknown) = (bind(peer), bind(unknown));
    let received = || Scrape::of(&host).get("hopsack_udp_datagrams_total");
    let lost = || Scrape::of(&host).dropped("ingress", "socket_queue_full");
    let (start, lost_before) = (received(), lost());
    let mut forger = Forger::new(0x5eed);
    let mut sent = 0;
    while sent < TOTAL {
        for _ in 0..1000 {
            let from = if forger.next().is_multiple_of(4) { &unknown } else { &peer };
            from.send_to(forger.datagram(), target).expect("sent");
            sent += 1;
        }
        // Send no faster than the daemon reads: a full socket queue is counted, but it would test
        // the kernel.
        eventually("the daemon keeps up", || received() - start + lost() - lost_before + 3000 > sent);
    }
    eventually("all have arrived", || received() - start + lost() - lost_before >= sent);

    // A packet counts as delivered when the kernel has accepted it. The peer sends control messages
    // meanwhile.
    let accounted = |scrape: &Scrape| {
        let taken = ["hopsack_ingress_packets_total", "hopsack_control_messages_total"];
        taken.map(|name| scrape.get(name)).iter().sum::<u64>() + scrape.all_dropped("ingress")
    };
    let adds_up = || {
        let now = Scrape::of(&host);
        now.get("hopsack_udp_datagrams_total") - start == accounted(&now) - accounted(&before)
    };
    eventually("received = delivered + dropped", adds_up);
    let after = Scrape::of(&host);
    let grown = |name: &str| after.get(name) - before.get(name);
    let dropped = after.all_dropped("ingress") - before.all_dropped("ingress");
    let delivered = grown("hopsack_ingress_packets_total");
    let control = grown("hopsack_control_messages_total");
    assert_eq!(
        grown("hopsack_udp_datagrams_total"),
        delivered + dropped + control,
        "and nothing is counted twice later"
    );
    assert_eq!(
        rx_packets() - device_before,
        grown("hopsack_ingress_writes_total"),
        "the device saw what we wrote"
    );
    for reason in ["malformed", "unknown_type", "unknown_peer", "spoofed_source", "own_source", "misrouted"] {
        assert!(after.dropped("ingress", reason) > 1000, "{reason} was hardly tried");
    }
    assert!(delivered > 10_000, "valid ones pass");
    assert!(memory() < memory_before + 4096, "no leak: {memory_before} kB before, {} kB after", memory());
    assert_eq!(lab.daemon(1).status().expect("it answers")["ready"], true);
}

/// Valid, truncated, mutated, spoofed, misrouted and random datagrams, from a fixed seed.
struct Forger {
    state: u64,
    valid: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Forger {
    fn new(seed: u64) -> Self {
        let udp = |src, dst, length| {
            let mut out = Vec::new();
            let builder = PacketBuilder::ipv4(src, dst, 64).udp(1, 2);
            builder.write(&mut out, &vec![7; length]).expect("fits");
            out
        };
        let own = [10, 244, 2, 9];
        let valid = vec![
            udp(own, [10, 244, 1, 77], 10),
            udp(own, [10, 244, 1, 77], 1400),
            udp([10, 244, 3, 9], [10, 244, 1, 77], 10),
            udp([10, 244, 1, 9], [10, 244, 1, 77], 10),
            udp(own, [10, 244, 3, 9], 10),
            udp(own, [203, 0, 113, 1], 10),
        ];
        Self { state: seed, valid, buffer: Vec::new() }
    }

    fn next(&mut self) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 33).expect("31 bits")
    }

    fn datagram(&mut self) -> &[u8] {
        let (kind, which) = (self.next() % 5, self.next() % self.valid.len());
        self.buffer.clear();
        self.buffer.extend(&self.valid[which]);
        match kind {
            // Unchanged.
            0 | 1 => {}
            // Shortened, or with bytes appended.
            2 => {
                let length = self.next() % (self.buffer.len() + 40);
                self.buffer.resize(length, 0xaa);
            }
            // With a few bits flipped.
            3 => {
                for _ in 0..=self.next() % 4 {
                    let (at, bit) = (self.next() % self.buffer.len(), self.next() % 8);
                    self.buffer[at] ^= 1 << bit;
                }
            }
            // Random bytes.
            _ => {
                let length = self.next() % 100;
                self.buffer.clear();
                for _ in 0..length {
                    let byte = self.next().to_le_bytes()[0];
                    self.buffer.push(byte);
                }
            }
        }
        &self.buffer
    }
}

/// Whether a line of the program's output ends with this error code.
fn is(output: &str, code: &str) -> bool {
    output.lines().any(|line| line.starts_with("hopsack: ") && line.ends_with(&format!("[{code}]")))
}

/// The finding of `hopsack check --json` with this code.
fn finding<'a>(findings: &'a serde_json::Value, code: &str) -> &'a serde_json::Value {
    let rows = findings.as_array().expect("a list");
    rows.iter().find(|row| row["code"] == code).unwrap_or_else(|| panic!("no {code}: {findings}"))
}

/// A lab with one host that has no daemon yet, to try configurations on.
struct Bench {
    lab: Lab,
    config: PathBuf,
}

impl Bench {
    fn new(label: &str) -> Self {
        let lab = Lab::create(Options { hosts: 1, ..Options::unique(label, HOPSACK) }).expect(
            "these tests need root (or a user namespace), /dev/net/tun, ip and ping: run scripts/test",
        );
        let config = lab.daemon(1).config_path();
        Self { lab, config }
    }

    fn netns(&self) -> &str {
        &self.lab.host(1).netns
    }

    /// Runs `hopsack run` with options; it must end with `code`.
    fn refused(&self, before: &[&str], options: &[&str], code: i32) -> String {
        let config = self.config.to_string_lossy();
        let mut argv = before.to_vec();
        argv.extend([HOPSACK, "run", "--config", &config]);
        argv.extend(options);
        let mut full = vec!["netns", "exec", self.netns(), "timeout", "10"];
        full.extend(argv);
        let output = Command::new("ip").args(full).output().expect("ip runs");
        self.judge(&output, code)
    }

    fn judge(&self, output: &Output, code: i32) -> String {
        let said = String::from_utf8_lossy(&output.stderr);
        let error: Vec<&str> = said.lines().filter(|line| line.starts_with("hopsack: ")).collect();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(error.len(), 1, "one sentence: {said}");
        let left = attempt(self.netns(), &["ip", "-d", "link"]);
        assert!(!left.contains("hopsack overlay"), "a device was left: {left}");
        assert!(!self.lab.daemon(1).control_path().exists(), "a control socket was left");
        assert!(!self.lab.host(1).directory.join("subnet.env").exists(), "a subnet.env was left");
        error[0].to_owned()
    }
}

#[test]
fn wrong_configuration_is_refused_with_code_2() {
    let bench = Bench::new("wrong");
    let cluster = bench.lab.cluster_path();
    let good = std::fs::read_to_string(&cluster).expect("the cluster file");

    // Options, the code of the error, and a value that the error must contain.
    for (options, code, value) in [
        (&["--overlay-port", "99999"][..], "config_value", "overlay.port"),
        (&["--overlay-mtu", "1473"], "mtu_too_large", "1472"),
        (&["--overlay-mtu", "1000"], "mtu_too_small", "1280"),
        (&["--store-path", "/nowhere/cluster.toml"], "cluster_file_unreadable", "/nowhere/cluster.toml"),
        (&["--store-kind", "consul"], "config_value", "store.kind"),
        (
            &["--store-kind", "etcd", "--store-endpoints", "192.0.2.250:2379"],
            "config_value",
            "store.endpoints",
        ),
        (&["--security-mode", "rot13"], "config_value", "security.mode"),
        (&["--security-require", "true"], "config_value", "security.require"),
        (&["--dataplane-busy-poll-us", "5000"], "config_value", "dataplane.busy_poll_us"),
    ] {
        let error = bench.refused(&[], options, 2);
        assert!(is(&error, code) && error.contains(value), "{options:?}: {error}");
    }
    // Errors of the file itself.
    let config = std::fs::read_to_string(&bench.config).expect("the configuration");
    std::fs::write(&bench.config, config.replace("device =", "devise =")).expect("written");
    let error = bench.refused(&[], &[], 2);
    assert!(is(&error, "config_syntax") && error.contains("devise"), "{error}");
    std::fs::write(&bench.config, config).expect("written");
    let output = hopsack(&["run", "--config", "/nowhere/hopsack.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(is(&text(&output), "config_unreadable"), "{}", text(&output));
    assert_eq!(hopsack(&["run", "--no-such-option"]).status.code(), Some(2));

    // Errors of the cluster file.
    let host = "[[hosts]]\nname = \"h2\"\npublic = [\"192.0.2.2\"]\nsubnets = [\"10.244.2.0/24\"]\n";
    for (from, to, value) in [
        ("10.244.2.0/24", "10.244.2.0/99", "10.244.2.0/99"),
        ("10.244.2.0/24", "10.244.1.0/25", "10.244.1.0/24"),
        ("192.0.2.2", "192.0.2.1", "192.0.2.1"),
        ("name =", "nmae =", "nmae"),
    ] {
        std::fs::write(&cluster, format!("{good}\n{}", host.replace(from, to))).expect("written");
        let error = bench.refused(&[], &[], 2);
        assert!(is(&error, "cluster_file_invalid") && error.contains(value), "{from} -> {to}: {error}");
    }
    std::fs::write(&cluster, good.replace("192.0.2.1", "192.0.2.8")).expect("written");
    let error = bench.refused(&[], &[], 2);
    assert!(is(&error, "host_not_listed") && error.contains("192.0.2.1"), "{error}");
}

#[test]
fn missing_ability_is_refused_with_code_1() {
    let bench = Bench::new("cannot");
    let netns = bench.netns().to_owned();

    let taken = in_netns(&netns, || UdpSocket::bind("192.0.2.1:8285")).expect("netns").expect("bound");
    let error = bench.refused(&[], &[], 1);
    assert!(is(&error, "udp_port_in_use") && error.contains("8285"), "{error}");
    drop(taken);

    let listener =
        in_netns(&netns, || std::net::TcpListener::bind("127.0.0.1:9285")).expect("netns").expect("bound");
    let error = bench.refused(&[], &[], 1);
    assert!(is(&error, "metrics_listen") && error.contains("127.0.0.1:9285"), "{error}");
    drop(listener);

    for foreign in
        [["link", "add", "hopsack0", "type", "bridge"], ["tuntap", "add", "hopsack0", "mode", "tun"]]
    {
        run(&netns, &[&["ip"][..], &foreign].concat());
        let error = bench.refused(&[], &[], 1);
        assert!(is(&error, "device_foreign") && error.contains("hopsack0"), "{error}");
        run(&netns, &["ip", "link", "del", "hopsack0"]);
    }

    let error = bench.refused(&["setpriv", "--bounding-set", "-net_admin"], &[], 1);
    assert!(is(&error, "no_net_admin"), "{error}");

    // A host without /dev/net/tun: this process gets an empty /dev/net of its own.
    let script = "mount -t tmpfs tmpfs /dev/net && exec \"$@\"";
    let error = bench.refused(&["unshare", "--mount", "sh", "-c", script, "sh"], &[], 1);
    assert!(is(&error, "no_tun_device"), "{error}");

    let error = bench.refused(&[], &["--node-subnet-env", "/proc/nowhere/subnet.env"], 1);
    assert!(is(&error, "file_write") && error.contains("/proc/nowhere/subnet.env"), "{error}");

    // `check` finds the same beforehand, and nothing on a good host.
    let config = bench.config.to_string_lossy().into_owned();
    let check = [HOPSACK, "check", "--json", "--config", &config];
    let findings = json(&run(&netns, &check));
    assert!(findings.as_array().expect("a list").iter().all(|row| row["ok"] == true), "{findings}");
    assert_eq!(finding(&findings, "pod_injection")["warning"], true, "packets travel in clear");
    run(&netns, &["ip", "link", "add", "hopsack0", "type", "bridge"]);
    let findings = json(&attempt(&netns, &check));
    assert_eq!(finding(&findings, "overlay_device")["ok"], false);
}

#[test]
fn two_daemons_share_neither_port_nor_device() {
    let lab = lab("two", 1, Family::V4);
    let netns = &lab.host(1).netns;
    let config = lab.daemon(1).config_path().to_string_lossy().into_owned();
    let second = |options: &[&str]| {
        attempt(netns, &[&["timeout", "10", HOPSACK, "run", "--config", &config], options].concat())
    };
    assert!(is(&second(&[]), "daemon_runs"), "the same run_dir");
    let other = lab.host(1).directory.join("other").to_string_lossy().into_owned();
    let own = ["--node-run-dir", &other, "--metrics-listen", ""];
    let said = second(&own);
    assert!(is(&said, "udp_port_in_use"), "{said}");
    let said = second(&[&own[..], &["--overlay-port", "9999"]].concat());
    assert!(is(&said, "device_busy"), "{said}");
    assert_eq!(lab.daemon(1).status().expect("the first one still answers")["ready"], true);
    assert!(
        ping(&lab.pod(1).netns, Ping::to(lab.host(1).subnet_v4.network())).expect("ping runs").is_whole()
    );
}

/// The daemon sends READY=1, a status, and STOPPING=1 to the socket in NOTIFY_SOCKET.
#[test]
fn systemd_gets_state_and_status() {
    let bench = Bench::new("notify");
    let path = bench.lab.host(1).directory.join("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(READY)).expect("a timeout");
    let mut child = Stopped(
        Command::new("ip")
            .args(["netns", "exec", bench.netns(), HOPSACK, "run", "--config"])
            .arg(&bench.config)
            .env("NOTIFY_SOCKET", &path)
            .stderr(Stdio::null())
            .spawn()
            .expect("ip runs"),
    );
    let mut received = String::new();
    let mut until = |word: &str| {
        let mut buffer = [0; 4096];
        while !received.contains(word) {
            let length =
                socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {word} ({error}): {received}"));
            received += &String::from_utf8_lossy(&buffer[..length]);
        }
    };
    until("READY=1");
    until("STATUS=");
    run(bench.netns(), &["kill", "-TERM", &child.0.id().to_string()]);
    until("STOPPING=1");
    assert!(child.0.wait().expect("it ends").success());
}

/// A child process that is killed when its test ends.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn removed_device_ends_the_daemon(engine: &str) {
    let lab = lab_on(engine, "gone", 1, Family::V4);
    run(&lab.host(1).netns, &["ip", "link", "del", "hopsack0"]);
    eventually("it ends", || lab.daemon(1).pid().is_none());
    let log = lab.daemon(1).log();
    assert!(is(&log, "device_gone"), "{log}");
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("the restart by systemd succeeds");
}

fn pings_are_lost_only_while_the_daemon_is_down(engine: &str) {
    let lab = lab_on(engine, "away", 2, Family::V6);
    let how = Ping { count: 10_000, interval: Duration::from_millis(5), ..Ping::to(lab.pod(2).v6) };
    let pinger = Pinger::start(&lab.pod(1).netns, how).expect("ping runs");
    std::thread::sleep(Duration::from_millis(300));
    lab.daemon(2).terminate().expect("it ends");
    lab.daemon(2).start().expect("started");
    lab.daemon(2).wait_ready(READY).expect("ready");
    std::thread::sleep(Duration::from_millis(300));
    let pinged = pinger.stop().expect("ping ends");
    assert_eq!(pinged.duplicates, 0);
    assert!(pinged.received >= 50, "{}", pinged.output);
}

#[test]
fn flanneld_command_line_runs_this_daemon() {
    let store = Store::Etcd { members: 1 };
    let lab = Lab::up(Options { hosts: 2, store, ..Options::unique("dropin", HOPSACK) }).expect("up");
    lab.daemon(2).terminate().expect("it ends");
    let (host, directory) = (lab.host(2).netns.clone(), lab.host(2).directory.clone());
    let argv = |flags: &[&str]| {
        let program = ["netns", "exec", &host, HOPSACK, "flanneld"].map(str::to_owned);
        program.into_iter().chain(flags.iter().map(|flag| (*flag).to_owned())).collect::<Vec<_>>()
    };
    let (run_dir, log) = (directory.join("run2"), directory.join("log2"));
    let (endpoints, subnet_file) = (lab.etcd(1).url(), directory.join("flannel.env").display().to_string());
    let mut daemon = Command::new("ip")
        .args(argv(&["-etcd-endpoints", &endpoints, "--iface=eth7", "-iface=eth0", "-iptables-resync=7"]))
        .args(["-healthz-ip=127.0.0.1", "-healthz-port=8471", "-ip-masq=false"])
        .env("FLANNELD_SUBNET_FILE", &subnet_file)
        .env("HOPSACK_NODE_RUN_DIR", &run_dir)
        .env("HOPSACK_NODE_STATE_DIR", directory.join("state"))
        .stderr(std::fs::File::create(&log).expect("a log"))
        .spawn()
        .expect("it starts");
    let all = Ping { count: 1, ..Ping::to(lab.pod(2).v4) };
    eventually("it forwards", || ping(&lab.pod(1).netns, all).expect("ping runs").is_whole());
    let config = std::fs::read_to_string(&subnet_file).expect("it has written it");
    assert!(config.contains("FLANNEL_SUBNET=10.244.2.1/24"), "{config}");
    let said = std::fs::read_to_string(&log).expect("the log");
    assert!(said.contains("-iptables-resync=7"), "{said}");
    daemon.kill().expect("killed");
    daemon.wait().expect("gone");

    let refused = Command::new("ip").args(argv(&["-kube-subnet-mgr"])).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(2));
    assert!(is(&text(&refused), "flag_refused"), "{}", text(&refused));
    assert!(attempt(&host, &[HOPSACK, "flanneld", "--help"]).contains("-etcd-endpoints"));
}
