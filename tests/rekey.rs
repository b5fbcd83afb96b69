//! Encryption over time: keys, certificates, processes and addresses change while TCP runs between
//! pods, and no TCP connection breaks.
//!
//! What an attacker can do, and what the underlay shows, is tested in tests/secure.rs.

mod support;

use std::fs::Permissions;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hopsack::lab::{Lab, Options};
use hopsack::packet::Family;
use hopsack::pki::{Authority, Description};
use hopsack::sys::netns::in_netns;
use support::encrypted::{
    READY, certify, configure, ends_whole, explain, flows, handshakes, hang_up, has_logged,
    has_logged_failure, keys, lab, of_peer, pair, reaches, start_again, started, stream, wait_keys, within,
};
use support::wire::Ear;
use support::{HOPSACK, Scrape, attempt, edit, eventually, run};

/// Makes one test for each function and mode.
macro_rules! in_both_modes {
    ($($name:ident)*) => {
        $(mod $name {
            #[test]
            fn sealed() {
                super::$name("sealed");
            }
            #[test]
            fn quic() {
                super::$name("quic");
            }
        })*
    };
}

in_both_modes! {
    tcp_survives_a_killed_daemon
    handshake_works_during_an_etcd_outage
    tcp_survives_new_certificates
    tcp_survives_a_new_address
    old_certificate_stops_working
}

/// Drop reasons that have to do with keys.
const KEY_REASONS: [&str; 4] = ["no_key", "unauthentic", "replayed", "cleartext"];

fn dropped_by_keys(lab: &Lab) -> u64 {
    let of = |host: usize| {
        let scrape = Scrape::of(&lab.host(host).netns);
        let both = |reason| scrape.dropped("egress", reason) + scrape.dropped("ingress", reason);
        KEY_REASONS.iter().chain(&["unconnected"]).map(|reason| both(reason)).sum::<u64>()
    };
    of(1) + of(2)
}

/// Whether a host has logged that it uses the certificate in this file.
fn uses_certificate(lab: &Lab, host: usize, path: &Path) -> bool {
    let Ok(certificates) = Description::read(path) else { return false };
    has_logged(lab, host, &[&format!("fingerprint={}", certificates[0].fingerprint)])
}

#[test]
fn rekey_every_two_seconds_loses_no_packet() {
    let lab = pair("rekey", "sealed", "rekey_seconds = 2\n");
    let rekeys = |host: usize| Scrape::of(&lab.host(host).netns).get("hopsack_seal_rekeys_total");
    eventually("pods reach each other", || reaches(&lab, 1, 2));
    wait_keys(&lab, 1, 2);
    // Packets that one host sent to the other, and those that arrived there or were counted as
    // dropped.
    let account = |from: usize, to: usize| {
        let (sent, received) = (Scrape::of(&lab.host(from).netns), Scrape::of(&lab.host(to).netns));
        let dropped = received.dropped("ingress", "socket_queue_full") + received.all_dropped("ingress");
        (sent.get("hopsack_egress_packets_total"), received.get("hopsack_ingress_packets_total") + dropped)
    };
    // Packets that went by QUIC while there was no key have arrived by then.
    std::thread::sleep(Duration::from_secs(2));
    let early = [account(1, 2), account(2, 1)];
    // TCP runs in both directions at once.
    let (there, back) = (stream(&lab, 1, 2), stream(&lab, 2, 1));
    let (before, begin) = ([rekeys(1), rekeys(2)], Instant::now());
    while begin.elapsed() < Duration::from_secs(60) {
        flows(&there);
        flows(&back);
    }
    let changes = [rekeys(1) - before[0], rekeys(2) - before[1]];
    assert!(ends_whole(there) > 0 && ends_whole(back) > 0);
    // A rekey is due after two seconds, which is noticed within half a second. A busy machine may
    // need longer.
    assert!(changes.iter().all(|changes| *changes >= 15), "rekeys in a minute: {changes:?}");
    assert_eq!(dropped_by_keys(&lab), 0, "no packet was lost because of keys");
    for ((from, to), early) in [(1, 2), (2, 1)].into_iter().zip(early) {
        let lost = || {
            let (sent, known) = account(from, to);
            (sent - early.0).saturating_sub(known - early.1)
        };
        eventually("each packet has arrived or is counted", || lost() == 0);
    }
}

fn tcp_survives_a_killed_daemon(mode: &str) {
    let lab = pair("kill", mode, "");
    let transfer = stream(&lab, 1, 2);
    for host in [1, 2] {
        flows(&transfer);
        lab.daemon(host).kill9().expect("killed");
        start_again(&lab, host);
    }
    flows(&transfer);
    ends_whole(transfer);
}

/// A handshake needs the leases, and they are on disk too.
fn handshake_works_during_an_etcd_outage(mode: &str) {
    let lab = pair("away", mode, "");
    let transfer = stream(&lab, 1, 2);
    flows(&transfer);
    for host in [1, 2] {
        let map = lab.host(host).directory.join("state/map");
        let other = format!("10.244.{}.0-24", 3 - host);
        eventually("the map on disk contains the other host", || {
            std::fs::read(&map).is_ok_and(|map| String::from_utf8_lossy(&map).contains(&other))
        });
    }
    lab.etcd(1).kill9().expect("killed");
    for host in [2, 1] {
        lab.daemon(host).kill9().expect("killed");
        lab.daemon(host).start().expect("started");
        lab.daemon(host).wait_ready(READY).expect("ready without etcd");
        within(15, "a handshake without etcd", || handshakes(&lab, host) >= 1);
        flows(&transfer);
        assert_ne!(of_peer(&lab, host, 3 - host, "transport"), "udp");
    }
    lab.etcd(1).start().expect("started");
    lab.etcd(1).wait_ready(READY).expect("etcd answers");
    within(30, "the store has no problem", || {
        [1, 2]
            .iter()
            .all(|host| lab.daemon(*host).status().is_ok_and(|status| status["store_trouble"].is_null()))
    });
    flows(&transfer);
    ends_whole(transfer);
}

fn tcp_survives_new_certificates(mode: &str) {
    let lab = pair("rotate", mode, "");
    let transfer = stream(&lab, 1, 2);
    for host in [1, 2] {
        flows(&transfer);
        let before = handshakes(&lab, 2);
        let state = lab.host(host).directory.join("state");
        for name in ["node.crt", "node.key"] {
            std::fs::remove_file(state.join(name)).expect("removed");
        }
        hang_up(&lab, host);
        eventually("the host uses a new certificate", || {
            uses_certificate(&lab, host, &state.join("node.crt"))
        });
        eventually("a handshake with the new certificate", || handshakes(&lab, 2) > before);
    }
    flows(&transfer);
    ends_whole(transfer);
    assert_eq!(dropped_by_keys(&lab), 0);
}

/// Writes a self-signed certificate as a host makes it, but with this validity.
fn write_self_signed(folder: &Path, name: &str, validity: Duration) {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now - Duration::from_secs(3600);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + validity;
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&pair).expect("signed");
    std::fs::create_dir_all(folder).expect("a folder");
    for (file, text) in [("node.key", pair.serialize_pem()), ("node.crt", certificate.pem())] {
        let path = folder.join(file);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("closed");
    }
}

#[test]
fn host_renews_its_own_certificate_in_time() {
    let lab = lab("renews", 2, Family::V4, "[security]\nmode = \"sealed\"\n");
    let state = lab.host(2).directory.join("state");
    write_self_signed(&state, &lab.host(2).name, Duration::from_secs(24));
    let shown = || Description::read(&state.join("node.crt")).expect("a certificate")[0].clone();
    let first = shown();
    let lab = started(lab);
    assert_eq!(shown().fingerprint, first.fingerprint, "the certificate is not due for renewal");
    let transfer = stream(&lab, 1, 2);
    flows(&transfer);
    let before = handshakes(&lab, 1);
    within(40, "the host makes a new certificate", || shown().fingerprint != first.fingerprint);
    within(10, "the host uses it", || uses_certificate(&lab, 2, &state.join("node.crt")));
    let second = shown();
    assert!(second.days_left > 300, "{second}");
    eventually("a handshake with the new certificate", || handshakes(&lab, 1) > before);
    let now = || SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    within(40, "the first certificate has expired", || {
        now() > u64::try_from(first.not_after).expect("after 1970")
    });
    flows(&transfer);
    ends_whole(transfer);
    assert_eq!(dropped_by_keys(&lab), 0);
    assert!(reaches(&lab, 2, 1));
}

/// Encryption ends at the next start. Until then the lease must stay as it is: a lease that names a
/// certificate and no mode is invalid, and peers would ignore it.
#[test]
fn reload_without_encryption_keeps_the_lease() {
    let lab = lab("reload-off", 2, Family::V4, "[security]\nmode = \"sealed\"\n");
    let folder = lab.host(1).directory.join("pki");
    write_self_signed(&folder, &lab.host(1).name, Duration::from_secs(365 * 24 * 3600));
    let [certificate, key] = ["node.crt", "node.key"].map(|name| folder.join(name));
    configure(&lab, 1, &format!("mode = \"sealed\"\ncert = {certificate:?}\nkey = {key:?}"));
    let lab = started(lab);
    wait_keys(&lab, 2, 1);
    let transfer = stream(&lab, 2, 1);
    configure(&lab, 1, "mode = \"none\"");
    hang_up(&lab, 1);
    eventually("the configuration was loaded", || has_logged(&lab, 1, &["security.mode"]));
    // The lease would be written at once.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(Scrape::of(&lab.host(2).netns).get("hopsack_store_bad_keys"), 0);
    assert_eq!(of_peer(&lab, 2, 1, "transport"), "sealed");
    flows(&transfer);
    ends_whole(transfer);
}

#[test]
fn packets_go_by_quic_when_a_certificate_expires() {
    const VALIDITY: Duration = Duration::from_secs(3600);
    let lab = lab("expires", 2, Family::V4, "");
    let ca = lab.host(1).directory.join("ca");
    Authority::init(&ca, "cluster", VALIDITY).expect("made");
    let give = |host: usize, seconds: u64| {
        // A key is removed an eighth of its lifetime before the limit, here one second before it. A
        // busy machine may need that second.
        let security = "mode = \"sealed\"\nrequire = true\nrekey_seconds = 4";
        certify(&lab, host, &ca, Duration::from_secs(seconds), security);
    };
    give(1, 3600);
    give(2, 21);
    lab.start().expect("ready");
    eventually("pods reach each other", || reaches(&lab, 1, 2));
    wait_keys(&lab, 1, 2);
    let transfer = stream(&lab, 1, 2);
    let has_keys = |host: usize| keys(&lab, host, 3 - host).is_some();
    let certificate = lab.host(2).directory.join("pki").join(format!("{}.crt", lab.host(2).name));

    // The host warns when a third of the validity is left, and reads the new certificate unasked.
    within(40, "a warning", || has_logged(&lab, 2, &["WARN", "hours=0"]));
    // The host logs the fingerprint of the certificate at its start, and of each new one in use.
    let log = lab.daemon(2).log();
    let fingerprints = log.matches("fingerprint=").count();
    assert_eq!(fingerprints, 1, "no new certificate is in use before it is signed: {log}");
    give(2, 15);
    eventually("the host uses the new certificate", || uses_certificate(&lab, 2, &certificate));
    flows(&transfer);

    // There is no third certificate. Handshakes fail and the keys expire, but the existing
    // connection carries the packets.
    within(40, "the keys expire", || !has_keys(1) && !has_keys(2));
    eventually("the reason is logged", || has_logged_failure(&lab, 1, 2, "certificate_expired"));
    let explanation = explain(&lab, 1, 2);
    assert_eq!(explanation["outcome"], "sent", "{explanation}");
    let steps = explanation["steps"].as_array().expect("a list");
    assert!(steps.iter().any(|step| step["code"] == "send_quic"), "{explanation}");
    flows(&transfer);
    // The transfer fills the queue of the connection at first, which may drop a single ping.
    eventually("pings pass during the transfer", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));

    give(2, 3600);
    hang_up(&lab, 2);
    within(15, "there are keys again", || has_keys(1) && has_keys(2));
    flows(&transfer);
    ends_whole(transfer);
    for host in [1, 2] {
        let scrape = Scrape::of(&lab.host(host).netns);
        assert_eq!(scrape.dropped("egress", "no_key"), 0, "keys are removed before they must refuse");
        assert_eq!(scrape.dropped("ingress", "cleartext"), 0);
    }
}

/// Gives host 1 a cluster file of its own, so that a test can change what only this host reads.
fn own_cluster_file(lab: &Lab) -> PathBuf {
    let (shared, own) = (lab.cluster_path(), lab.host(1).directory.join("cluster.toml"));
    std::fs::copy(&shared, &own).expect("copied");
    edit(&lab.daemon(1).config_path(), &shared.to_string_lossy(), &own.to_string_lossy());
    own
}

/// A lab of two hosts with a cluster file.
fn file_lab(label: &str, security: &str) -> Lab {
    let extra_config = format!("[security]\n{security}\n");
    let options = Options { hosts: 2, extra_config, ..Options::unique(label, HOPSACK) };
    Lab::create(options).expect("these tests need root, /dev/net/tun, ip and ping: run scripts/test")
}

fn revoked(lab: &Lab, host: usize) -> u64 {
    Scrape::of(&lab.host(host).netns).get("hopsack_quic_certificates_revoked_total")
}

/// Host 1 exchanges no packets with host 2 any more, by whatever connection or key.
fn is_cut_off(lab: &Lab, what: &str) {
    within(20, what, || revoked(lab, 1) >= 1);
    assert!(keys(lab, 1, 2).is_none(), "{what}");
    assert!(!reaches(lab, 1, 2) && !reaches(lab, 2, 1), "{what}");
    assert_eq!(explain(lab, 1, 2)["outcome"], "waits", "{what}");
    assert_eq!(Scrape::of(&lab.host(1).netns).get("hopsack_quic_connections"), 0, "{what}");
}

/// The lease of host 2 names another certificate: the one that host 2 still shows, and its keys, are
/// worth nothing after the time for a rotation.
fn old_certificate_stops_working(mode: &str) {
    let lab = file_lab("revoked", &format!("mode = \"{mode}\"\nrequire = true\nrevoke_seconds = 1"));
    let file = own_cluster_file(&lab);
    let lab = started(lab);
    eventually("pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
    if mode == "sealed" {
        wait_keys(&lab, 1, 2);
    }
    let certificate = lab.host(2).directory.join("state/node.crt");
    let fingerprint = Description::read(&certificate).expect("a certificate")[0].fingerprint.clone();
    edit(&file, &fingerprint, &"17".repeat(32));
    is_cut_off(&lab, "another certificate in the lease");
    let refused = of_peer(&lab, 1, 2, "encryption");
    assert!(refused.as_str().is_some_and(|text| text.contains(&fingerprint)), "{refused}");

    edit(&file, &"17".repeat(32), &fingerprint);
    within(20, "pods reach each other again", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
    // A lease that is gone ends connection and keys at once.
    let whole = std::fs::read_to_string(&file).expect("read");
    let host_2 = whole.rfind("[[hosts]]").expect("two hosts");
    edit(&file, &whole[host_2..], "");
    within(20, "the lease is gone", || Scrape::of(&lab.host(1).netns).get("hopsack_quic_connections") == 0);
    assert!(!reaches(&lab, 1, 2) && !reaches(&lab, 2, 1));
}

/// With a CA, the lease names the host, not the certificate. A connection ends if the lease names
/// another host, and if the CA of its certificate is not trusted any more.
#[test]
fn certificate_of_another_name_or_ca_stops_working() {
    const VALIDITY: Duration = Duration::from_secs(3600);
    let lab = file_lab("renamed", "mode = \"none\"");
    let folders = [1, 2].map(|host| lab.host(host).directory.join("ca"));
    for (host, folder) in [1, 2].into_iter().zip(&folders) {
        Authority::init(folder, "cluster", VALIDITY).expect("made");
        let security = "mode = \"sealed\"\nrequire = true\nrevoke_seconds = 1\nport = 8286";
        certify(&lab, host, folder, VALIDITY, security);
    }
    // Both hosts trust both CAs.
    let pem = |host: usize| std::fs::read_to_string(folders[host - 1].join("ca.crt")).expect("a CA");
    let (one, other) = (pem(1), pem(2));
    for folder in &folders {
        std::fs::write(folder.join("ca.crt"), format!("{one}{other}")).expect("written");
    }
    for number in [1, 2] {
        let (name, at) = (&lab.host(number).name, lab.host(number).public);
        let line = format!("name    = \"{name}\"\npublic  = [\"{at}\"]\n");
        edit(&lab.cluster_path(), &line, &format!("{line}security = {{ mode = \"sealed\" }}\n"));
    }
    let file = own_cluster_file(&lab);
    let lab = started(lab);
    let is_whole = || {
        within(20, "pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
        wait_keys(&lab, 1, 2);
    };
    is_whole();
    let name = format!("\"{}\"", lab.host(2).name);
    edit(&file, &name, "\"another\"");
    within(20, "the name in the lease has changed", || revoked(&lab, 1) == 1);
    assert!(!reaches(&lab, 1, 2) && !reaches(&lab, 2, 1));
    edit(&file, "\"another\"", &name);
    is_whole();
    std::fs::write(folders[0].join("ca.crt"), one).expect("written");
    hang_up(&lab, 1);
    within(20, "the CA is not trusted any more", || revoked(&lab, 1) == 2);
    assert!(keys(&lab, 1, 2).is_none() && !reaches(&lab, 1, 2) && !reaches(&lab, 2, 1));
}

fn tcp_survives_a_new_address(mode: &str) {
    let lab = lab(&format!("moves-{mode}"), 2, Family::V4, &format!("[security]\nmode = \"{mode}\"\n"));
    edit(&lab.daemon(2).config_path(), "public_ip  = \"192.0.2.2\"\n", "");
    let lab = started(lab);
    eventually("pods reach each other", || reaches(&lab, 1, 2));
    let transfer = stream(&lab, 1, 2);
    flows(&transfer);
    let move_to = |from: &str, to: &str| {
        let netns = &lab.host(2).netns;
        run(netns, &["ip", "addr", "del", &format!("{from}/24"), "dev", "eth0"]);
        run(netns, &["ip", "addr", "add", &format!("{to}/24"), "dev", "eth0"]);
        within(15, "the peer knows the address", || of_peer(&lab, 1, 2, "endpoint") == format!("{to}:8285"));
    };
    move_to("192.0.2.2", "192.0.2.102");
    flows(&transfer);
    assert_eq!(of_peer(&lab, 1, 2, "transport"), mode);
    if mode == "sealed" {
        wait_keys(&lab, 1, 2);
    }
    eventually("packets are sent encrypted", || explain(&lab, 1, 2)["outcome"] == "sent");
    ends_whole(transfer);

    // Pod 1 sends nothing, so only the host that has moved can make a new connection.
    let ear = Ear::of(&lab, 1);
    let (at, to) = ((lab.pod(2).v4, 0), (lab.pod(1).v4, Ear::PORT));
    let socket = in_netns(&lab.pod(2).netns, move || UdpSocket::bind(at)).and_then(|bound| bound);
    let socket = socket.expect("a socket");
    move_to("192.0.2.102", "192.0.2.103");
    within(15, "datagrams in one direction arrive", || {
        socket.send_to(b"one way", to).expect("sent");
        ear.count(Duration::from_millis(50)) > 0
    });
}

/// The port of the QUIC socket is in use on the new address of a host for a while.
#[test]
fn quic_socket_follows_once_its_port_is_free() {
    let lab = lab("port-taken", 2, Family::V4, "[security]\nmode = \"quic\"\nrequire = true\n");
    edit(&lab.daemon(2).config_path(), "public_ip  = \"192.0.2.2\"\n", "");
    let lab = started(lab);
    eventually("pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
    let netns = &lab.host(2).netns;
    run(netns, &["ip", "addr", "add", "192.0.2.102/24", "dev", "eth0"]);
    let taken = in_netns(netns, || UdpSocket::bind(("192.0.2.102", 8286))).and_then(|bound| bound);
    let taken = taken.expect("a socket");
    run(netns, &["ip", "addr", "del", "192.0.2.2/24", "dev", "eth0"]);
    // A secondary address goes with the first.
    attempt(netns, &["ip", "addr", "add", "192.0.2.102/24", "dev", "eth0"]);
    let problem = || {
        let status = lab.daemon(2).status().expect("the daemon answers");
        let problems = status["problems"].as_array().expect("a list").clone();
        problems.iter().any(|problem| problem["code"] == "quic_socket")
    };
    within(15, "the problem is shown", problem);
    drop(taken);
    within(15, "the problem is over", || !problem());
    within(30, "pods reach each other again", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
}

#[test]
fn encryption_can_be_turned_on_host_by_host() {
    let lab = started(lab("turned-on", 3, Family::V4, ""));
    let streams = [stream(&lab, 1, 2), stream(&lab, 3, 1), stream(&lab, 2, 3)];
    let everything_flows = || streams.iter().for_each(flows);
    everything_flows();
    let restart = |host: usize, security: &str| {
        configure(&lab, host, security);
        lab.daemon(host).terminate().expect("ended");
        start_again(&lab, host);
        lab.daemon(host).wait_peers(2, READY).expect("the host knows the others");
        everything_flows();
    };
    let transports = |host: usize| {
        let others = (1..=3).filter(|other| *other != host);
        others.map(|other| of_peer(&lab, host, other, "transport")).collect::<Vec<_>>()
    };
    (1..=3).for_each(|host| restart(host, "mode = \"sealed\""));
    for host in 1..=3 {
        assert_eq!(transports(host), ["sealed", "sealed"]);
    }
    (1..=3).for_each(|host| restart(host, "mode = \"sealed\"\nrequire = true"));
    // Pods keep their MTU. Their packets are 38 bytes longer than the overlay takes, and the hosts
    // tell them so.
    assert_eq!(lab.daemon(1).status().expect("the daemon answers")["mtu"], 1434);

    // Encryption is turned off in two steps: at first, no host requires it any longer.
    (1..=3).for_each(|host| restart(host, "mode = \"sealed\""));
    (1..=3).for_each(|host| restart(host, "mode = \"none\""));
    for host in 1..=3 {
        assert_eq!(transports(host), ["udp", "udp"]);
    }
    everything_flows();
    for transfer in streams {
        ends_whole(transfer);
    }
}
