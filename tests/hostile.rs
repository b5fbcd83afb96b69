//! What a hostile writer to etcd can do with forged leases, and what hosts tell about it.

mod support;

use std::net::IpAddr;

use hopsack::api::{Explanation, Outcome, Request, StepCode};
use hopsack::lab::Lab;
use hopsack::lab::ping::{Ping, ping};
use serde_json::Value;
use support::encrypted::{configure, pair, reaches, start_again, wait_keys};
use support::hostile::{delete, key, put, value};
use support::{eventually, run};

/// The first IPv4 subnet of a host's lease, as the daemon reports it, and the whole lease's name.
fn subnets(lab: &Lab, host: usize) -> (String, String) {
    let status = lab.daemon(host).status().expect("it answers");
    let all: Vec<String> = status["subnets"].as_array().expect("a list").iter().map(text).collect();
    (all[0].clone(), all.join("&"))
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// The problem with this code and object, as a host reports it.
fn problem(lab: &Lab, host: usize, code: &str, object: &str) -> Option<String> {
    let status = lab.daemon(host).status().expect("it answers");
    let problems = status["problems"].as_array().expect("a list").clone();
    let found = problems.into_iter().find(|it| it["code"] == code && it["object"] == object)?;
    Some(text(&found["cause"]))
}

fn transport(lab: &Lab, host: usize, address: IpAddr) -> Value {
    let request = format!(r#"{{"command":"explain","address":"{address}"}}"#);
    lab.daemon(host).ask(&request).expect("the daemon answers")["transport"].clone()
}

/// A subnet of the lab's network that no lease holds.
fn free(lab: &Lab) -> &'static str {
    let taken = [subnets(lab, 1).0, subnets(lab, 2).0];
    ["10.244.250.0/24", "10.244.251.0/24", "10.244.252.0/24"]
        .into_iter()
        .find(|subnet| !taken.iter().any(|taken| taken == subnet))
        .expect("two are taken at most")
}

#[test]
fn forged_leases_weaken_nothing_and_are_problems() {
    let lab = pair("hostile", "sealed", "");
    eventually("the hosts reach each other", || reaches(&lab, 1, 2));
    wait_keys(&lab, 1, 2);
    let (h1, h2) = (lab.host(1).public, lab.host(2).public);
    let ((own, _), (_, of_h2)) = (subnets(&lab, 1), subnets(&lab, 2));

    // What a flanneld leaves behind that ran on h2 once: its address stays encrypted.
    let leftover = free(&lab);
    put(&lab, leftover, &format!(r#"{{"PublicIP":"{h2}"}}"#));
    let object = key(leftover);
    eventually("the leftover is a problem", || {
        let cause = problem(&lab, 1, "lease_conflict", &object);
        cause.is_some_and(|cause| cause.contains(&key(&of_h2)))
    });
    let inside: IpAddr = leftover.replace(".0/24", ".9").parse().expect("an address");
    assert_eq!(transport(&lab, 1, inside), "sealed");
    assert_eq!(transport(&lab, 1, lab.pod(2).v4.into()), "sealed");
    assert!(reaches(&lab, 1, 2));
    delete(&lab, leftover);
    eventually("the problem is over", || problem(&lab, 1, "lease_conflict", &object).is_none());

    // Another certificate for h2's address: neither lease has a route until one is gone.
    let forged = value(&lab, &of_h2);
    let at = forged.find("\"Fingerprint\":\"").expect("it encrypts") + 15;
    let forged = format!("{}{}{}", &forged[..at], "0".repeat(64), &forged[at + 64..]);
    put(&lab, leftover, &forged);
    eventually("both keys are problems", || {
        [object.clone(), key(&of_h2)]
            .iter()
            .all(|object| problem(&lab, 1, "lease_conflict", object).is_some())
    });
    assert_eq!(transport(&lab, 1, lab.pod(2).v4.into()), Value::Null);
    let lost = ping(&lab.pod(1).netns, Ping::to(IpAddr::V4(lab.pod(2).v4))).expect("ping runs");
    assert!(!lost.is_whole(), "packets pass although two certificates claim the address");
    delete(&lab, leftover);
    eventually("h2 is reached again", || reaches(&lab, 1, 2));

    // A lease inside our own subnet, around our pod: the pod stays ours.
    let pod = lab.pod(1).v4.octets();
    let inner = format!("{}.{}.{}.{}/31", pod[0], pod[1], pod[2], pod[3] & !1);
    put(&lab, &inner, r#"{"PublicIP":"192.0.2.200"}"#);
    eventually("the inner lease is a problem on both hosts", || {
        [1, 2].iter().all(|host| problem(&lab, *host, "lease_conflict", &key(&inner)).is_some())
    });
    assert!(reaches(&lab, 2, 1), "our pod was cut off (own subnet {own}, {h1})");

    // Addresses that no other host can have: inside the overlay, loopback, our own, broadcast.
    let broadcast = format!("{}255", &h1.to_string()[..h1.to_string().rfind('.').expect("IPv4") + 1]);
    for (address, code) in [
        ("10.244.9.9", "lease_invalid"),
        ("127.0.0.1", "lease_invalid"),
        (h1.to_string().as_str(), "lease_conflict"),
        (broadcast.as_str(), "lease_conflict"),
    ] {
        put(&lab, leftover, &format!(r#"{{"PublicIP":"{address}"}}"#));
        eventually(address, || problem(&lab, 1, code, &object).is_some());
        assert_eq!(transport(&lab, 1, inside), Value::Null, "{address}");
        delete(&lab, leftover);
        eventually("the problem is over", || problem(&lab, 1, code, &object).is_none());
    }

    // What the kernel does with the datagram itself.
    let (to, of_h1) = (format!("{h2}/32"), lab.host(1).netns.clone());
    let device = text(&lab.daemon(1).status().expect("it answers")["device"]);
    for (route, code) in [
        (vec!["blackhole", &to], StepCode::NextHopBlackhole),
        (vec!["unreachable", &to], StepCode::NextHopUnreachable),
        (vec![&to, "dev", &device], StepCode::NextHopInOverlay),
    ] {
        run(&of_h1, &[&["ip", "route", "add"], &route[..]].concat());
        let said: Explanation = lab
            .daemon(1)
            .query(Request::Explain { address: lab.pod(2).v4.into() })
            .expect("the daemon answers");
        run(&of_h1, &[&["ip", "route", "del"], &route[..]].concat());
        assert!(said.has(code) && said.outcome == Outcome::Dropped, "{said:#?}");
    }

    // A host that does not encrypt at all sends in clear as before.
    lab.daemon(1).terminate().expect("stopped");
    configure(&lab, 1, "mode = \"none\"");
    start_again(&lab, 1);
    put(&lab, leftover, &format!(r#"{{"PublicIP":"{h2}"}}"#));
    eventually("the leftover is routed", || transport(&lab, 1, inside) == "udp");
}
