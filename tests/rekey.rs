//! Encryption over time: keys, certificates, processes and addresses come and go while TCP runs between pods, and nobody
//! notices. Who is kept out, and what the cable shows, is in tests/secure.rs.

mod support;

use std::fs::Permissions;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use hopsack::lab::Lab;
use hopsack::packet::Family;
use hopsack::pki::{Authority, Description};
use hopsack::sys::netns::in_netns;
use support::encrypted::{
    READY, certify, configure, ends_whole, flows, handshakes, lab, of_peer, pair, reaches, start_again,
    started, stream, within,
};
use support::wire::Ear;
use support::{Scrape, edit, eventually, run};

/// Makes of each function a test in both modes.
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
    either_end_is_killed
    a_handshake_while_etcd_is_away
    certificates_are_replaced
    a_host_moves
}

/// Reasons by which keys, or the lack of them, lose packets.
const OF_KEYS: [&str; 4] = ["no_key", "unauthentic", "replayed", "cleartext"];

fn dropped_by_keys(lab: &Lab) -> u64 {
    let of = |host: usize| {
        let scrape = Scrape::of(&lab.host(host).netns);
        let both = |reason| scrape.dropped("egress", reason) + scrape.dropped("ingress", reason);
        OF_KEYS.iter().chain(&["unconnected"]).map(|reason| both(reason)).sum::<u64>()
    };
    of(1) + of(2)
}

fn hang_up(lab: &Lab, host: usize) {
    let pid = lab.daemon(host).pid().expect("it runs").to_string();
    run(&lab.host(host).netns, &["kill", "-HUP", &pid]);
}

fn log_has(lab: &Lab, host: usize, words: &str) -> bool {
    lab.daemon(host).log().contains(words)
}

#[test]
fn keys_are_replaced_every_two_seconds_for_a_minute() {
    let lab = pair("rekey", "sealed", "rekey_seconds = 2\n");
    let rekeys = |host: usize| Scrape::of(&lab.host(host).netns).get("hopsack_seal_rekeys_total");
    eventually("keys", || reaches(&lab, 1, 2) && of_peer(&lab, 1, 2, "encryption").starts_with("sealed"));
    // Packets that left one for the other, that arrived there, and that its kernel or its daemon counts as dropped.
    let account = |from: usize, to: usize| {
        let (sent, got) = (Scrape::of(&lab.host(from).netns), Scrape::of(&lab.host(to).netns));
        let dropped = got.dropped("ingress", "socket_queue_full") + got.all_dropped("ingress");
        (sent.get("hopsack_egress_packets_total"), got.get("hopsack_ingress_packets_total") + dropped)
    };
    // What went by QUIC while there was no key has had its time.
    std::thread::sleep(Duration::from_secs(2));
    let early = [account(1, 2), account(2, 1)];
    // Both ways at once.
    let (there, back) = (stream(&lab, 1, 2), stream(&lab, 2, 1));
    let (before, begin) = ([rekeys(1), rekeys(2)], Instant::now());
    while begin.elapsed() < Duration::from_secs(60) {
        flows(&there);
        flows(&back);
    }
    let changes = [rekeys(1) - before[0], rekeys(2) - before[1]];
    assert!(ends_whole(there) > 0 && ends_whole(back) > 0);
    // One in two seconds, and half a second until it is seen that one is due; a busy machine may be later.
    assert!(changes.iter().all(|changes| *changes >= 15), "{changes:?} in a minute");
    assert_eq!(dropped_by_keys(&lab), 0, "each lost packet was the path's");
    for ((from, to), early) in [(1, 2), (2, 1)].into_iter().zip(early) {
        let lost = || {
            let (sent, known) = account(from, to);
            (sent - early.0).saturating_sub(known - early.1)
        };
        eventually("each packet has arrived, or is counted", || lost() == 0);
    }
}

fn either_end_is_killed(mode: &str) {
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

/// What a handshake needs of the store, the certificate's owner and its place, is on disk.
fn a_handshake_while_etcd_is_away(mode: &str) {
    let lab = pair("away", mode, "");
    let transfer = stream(&lab, 1, 2);
    flows(&transfer);
    for host in [1, 2] {
        let map = lab.host(host).directory.join("state/map");
        let other = format!("10.244.{}.0-24", 3 - host);
        eventually("the map with the other is on disk", || {
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
        assert!(of_peer(&lab, host, 3 - host, "encryption") != "none");
    }
    lab.etcd(1).start().expect("started");
    lab.etcd(1).wait_ready(READY).expect("it serves");
    within(30, "etcd is back", || {
        [1, 2]
            .iter()
            .all(|host| lab.daemon(*host).status().is_ok_and(|status| status["store_trouble"].is_null()))
    });
    flows(&transfer);
    ends_whole(transfer);
}

fn certificates_are_replaced(mode: &str) {
    let lab = pair("rotate", mode, "");
    let transfer = stream(&lab, 1, 2);
    for host in [1, 2] {
        flows(&transfer);
        let before = handshakes(&lab, 2);
        let state = lab.host(host).directory.join("state");
        for name in ["node.crt", "node.key"] {
            std::fs::remove_file(state.join(name)).expect("it was there");
        }
        hang_up(&lab, host);
        eventually("another certificate", || log_has(&lab, host, "shows another certificate"));
        eventually("a handshake with it", || handshakes(&lab, 2) > before);
    }
    flows(&transfer);
    ends_whole(transfer);
    assert_eq!(dropped_by_keys(&lab), 0);
}

/// A certificate as a host makes it for itself, but for its life.
fn self_made(folder: &Path, name: &str, life: Duration) {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now - Duration::from_secs(3600);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + life;
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
fn a_host_renews_its_own_certificate_before_it_runs_out() {
    let lab = lab("renews", 2, Family::V4, "[security]\nmode = \"sealed\"\n");
    let state = lab.host(2).directory.join("state");
    self_made(&state, &lab.host(2).name, Duration::from_secs(24));
    let shown = || Description::read(&state.join("node.crt")).expect("a certificate")[0].clone();
    let first = shown();
    let lab = started(lab);
    assert_eq!(shown().fingerprint, first.fingerprint, "two thirds of its life are not over");
    let transfer = stream(&lab, 1, 2);
    flows(&transfer);
    let before = handshakes(&lab, 1);
    within(40, "another certificate", || log_has(&lab, 2, "shows another certificate"));
    let second = shown();
    assert!(second.fingerprint != first.fingerprint && second.days_left > 300, "{second}");
    eventually("a handshake with it", || handshakes(&lab, 1) > before);
    let now = || SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    within(40, "the first one has run out", || now() > u64::try_from(first.not_after).expect("after 1970"));
    flows(&transfer);
    ends_whole(transfer);
    assert_eq!(dropped_by_keys(&lab), 0);
    assert!(reaches(&lab, 2, 1));
}

#[test]
fn a_certificate_of_the_ca_is_asked_for_in_time_and_without_one_packets_go_by_quic() {
    const LIFE: Duration = Duration::from_secs(3600);
    let lab = lab("expires", 2, Family::V4, "");
    let ca = lab.host(1).directory.join("ca");
    Authority::init(&ca, "cluster", LIFE).expect("made");
    let give = |host: usize, seconds: u64| {
        // A key goes an eighth of its life before it must refuse: here a second, which a busy machine may need.
        let security = "mode = \"sealed\"\nrequire = true\nrekey_seconds = 4";
        certify(&lab, host, &ca, Duration::from_secs(seconds), security);
    };
    give(1, 3600);
    give(2, 21);
    lab.start().expect("ready");
    eventually("keys", || reaches(&lab, 1, 2) && of_peer(&lab, 1, 2, "encryption").starts_with("sealed"));
    let transfer = stream(&lab, 1, 2);
    let has_keys = |host: usize| of_peer(&lab, host, 3 - host, "encryption").starts_with("sealed");

    // It says so when a third of its life is left, and takes the new one without being told.
    within(40, "a warning", || log_has(&lab, 2, "runs out soon"));
    assert!(!log_has(&lab, 2, "shows another certificate"));
    give(2, 15);
    eventually("it is taken", || log_has(&lab, 2, "shows another certificate"));
    flows(&transfer);

    // Nobody brings another one: handshakes fail, the keys wear out, and the connection that stands carries the packets.
    within(40, "keys wear out", || !has_keys(1) && !has_keys(2));
    assert!(
        log_has(&lab, 1, "packets to it go by QUIC") && log_has(&lab, 1, "expired"),
        "{}",
        lab.daemon(1).log()
    );
    assert!(of_peer(&lab, 1, 2, "encryption").starts_with("QUIC"));
    flows(&transfer);
    assert!(reaches(&lab, 1, 2) && reaches(&lab, 2, 1));

    give(2, 3600);
    hang_up(&lab, 2);
    within(15, "keys again", || has_keys(1) && has_keys(2));
    flows(&transfer);
    ends_whole(transfer);
    for host in [1, 2] {
        let scrape = Scrape::of(&lab.host(host).netns);
        assert_eq!(scrape.dropped("egress", "no_key"), 0, "a key goes before it must refuse");
        assert_eq!(scrape.dropped("ingress", "cleartext"), 0);
    }
}

fn a_host_moves(mode: &str) {
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
        within(15, "the other follows", || of_peer(&lab, 1, 2, "endpoint") == format!("{to}:8285"));
    };
    move_to("192.0.2.2", "192.0.2.102");
    flows(&transfer);
    let encrypted = || of_peer(&lab, 1, 2, "encryption");
    let wanted = if mode == "sealed" { "sealed by" } else { "QUIC, TLS 1.3" };
    eventually("it is encrypted at the new place", || encrypted().starts_with(wanted));
    ends_whole(transfer);

    // Nobody answers here: only who moved can bring the connection back.
    let ear = Ear::of(&lab, 1);
    let (at, to) = ((lab.pod(2).v4, 0), (lab.pod(1).v4, Ear::PORT));
    let socket = in_netns(&lab.pod(2).netns, move || UdpSocket::bind(at)).and_then(|bound| bound);
    let socket = socket.expect("a socket");
    move_to("192.0.2.102", "192.0.2.103");
    within(15, "what goes one way arrives", || {
        socket.send_to(b"one way", to).expect("sent");
        ear.count(Duration::from_millis(50)) > 0
    });
}

#[test]
fn encryption_is_turned_on_and_off_host_by_host() {
    let lab = started(lab("turned-on", 3, Family::V4, ""));
    let streams = [stream(&lab, 1, 2), stream(&lab, 3, 1), stream(&lab, 2, 3)];
    let everything_flows = || streams.iter().for_each(flows);
    everything_flows();
    let restart = |host: usize, security: &str| {
        configure(&lab, host, security);
        lab.daemon(host).terminate().expect("it ends");
        start_again(&lab, host);
        lab.daemon(host).wait_peers(2, READY).expect("it knows the others");
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
    // Pods are as they were: their packets are longer than what the overlay takes by 38 bytes, and they are told.
    assert_eq!(lab.daemon(1).status().expect("it answers")["mtu"], 1434);

    // And back: first nobody requires it.
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
