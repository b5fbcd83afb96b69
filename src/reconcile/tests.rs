//! The reconciler over a host in memory.

use std::sync::Arc;
use std::time::Duration;

use super::repetition::WINDOW;
use super::*;
use crate::api::ProblemCode;
use crate::desired::{
    ALIAS, Address, Desired, Feature, File, Link, LinkKind, Object, Offload, ROUTE_PROTOCOL, Route, Sysctl,
};
use crate::netlink::Notice;
use crate::observe::Problems;

fn desired() -> Desired {
    let mut desired = Desired::default();
    desired.add_link(link(true, 1472));
    desired
        .addresses
        .insert(Address { link: "hopsack0".into(), net: "10.1.1.0/32".parse().expect("a prefix") });
    desired.routes.insert(Route {
        destination: "10.1.0.0/16".parse().expect("a prefix"),
        link: "hopsack0".into(),
        source: Some([10, 1, 1, 0].into()),
        protocol: ROUTE_PROTOCOL,
    });
    desired.sysctls.insert(Sysctl { key: "net/ipv4/ip_forward".into(), value: "1".into(), required: true });
    desired.offloads.insert(Offload { link: "hopsack0".into(), feature: Feature::Gro, on: true });
    desired.files.insert(File { path: "/run/subnet.env".into(), content: b"x".to_vec(), mode: 0o644 });
    desired
}

fn link(up: bool, mtu: u32) -> Link {
    Link { name: "hopsack0".into(), kind: LinkKind::Tun, alias: ALIAS.into(), up, mtu, peer: String::new() }
}

/// A host with a fresh device, and its reconciler.
fn host() -> (Recording, Reconciler, Arc<Problems>) {
    let recording = Recording::default();
    recording.host().actual.links.insert("hopsack0".into(), link(false, 1500));
    let problems = Arc::<Problems>::default();
    let reconciler = Reconciler::new(Kernel::Recording(recording.clone()), problems.clone());
    (recording, reconciler, problems)
}

fn objects(recording: &Recording) -> Vec<Object> {
    recording.host().steps.drain(..).map(|step| step.object()).collect()
}

fn repairs(reconciler: &Reconciler) -> [u64; 6] {
    Object::ALL.map(|object| reconciler.repairs().get(object))
}

#[tokio::test]
async fn start_makes_all_rows_and_counts_no_repair() {
    let (recording, mut reconciler, _) = host();
    reconciler.change(desired()).await.expect("all in place");
    let all = [Object::Sysctl, Object::Offload, Object::Link, Object::Address, Object::Route, Object::File];
    assert_eq!(objects(&recording), all);
    reconciler.repair().await;
    assert!(objects(&recording).is_empty());
    assert_eq!(repairs(&reconciler), [0; 6]);
}

#[tokio::test]
async fn disturbances_are_repaired_and_counted() {
    let (recording, mut reconciler, problems) = host();
    reconciler.change(desired()).await.expect("all in place");
    objects(&recording);
    {
        let actual = &mut recording.host().actual;
        actual.links.insert("hopsack0".into(), link(false, 1472));
        actual.offloads.clear();
        actual.addresses.clear();
        actual.routes.clear();
        actual.sysctls.insert("net/ipv4/ip_forward".into(), "0".into());
        actual.files.clear();
    }
    reconciler.repair().await;
    let all = [Object::Sysctl, Object::Offload, Object::Link, Object::Address, Object::Route, Object::File];
    assert_eq!(objects(&recording), all);
    assert_eq!(repairs(&reconciler), [1; 6]);
    assert!(problems.list().is_empty());
}

#[tokio::test]
async fn failed_repair_is_a_problem_until_it_succeeds() {
    let (recording, mut reconciler, problems) = host();
    reconciler.change(desired()).await.expect("all in place");
    recording.host().actual.routes.clear();
    recording.host().refuse = Some(|step| step.object() == Object::Route);
    reconciler.repair().await;
    let list = problems.list();
    assert_eq!((list.len(), list[0].code), (1, ProblemCode::RepairFailed));
    assert_eq!(list[0].object, "10.1.0.0/16");
    recording.host().refuse = None;
    reconciler.repair().await;
    assert!(problems.list().is_empty());
    assert_eq!(reconciler.repairs().get(Object::Route), 1);
}

#[tokio::test]
async fn late_change_of_our_own_is_no_repair() {
    let (recording, mut reconciler, problems) = host();
    recording.host().refuse = Some(|step| step.object() == Object::Link);
    reconciler.change(desired()).await.expect_err("refused");
    recording.host().refuse = None;
    reconciler.repair().await;
    assert_eq!(repairs(&reconciler), [0; 6]);
    assert!(problems.list().is_empty());
    recording.host().actual.links.insert("hopsack0".into(), link(false, 1472));
    reconciler.repair().await;
    assert_eq!(reconciler.repairs().get(Object::Link), 1);
}

/// Another program clears `net.ipv4.ip_forward`, and the reconciler sets it again.
async fn clear_and_repair(recording: &Recording, reconciler: &mut Reconciler) {
    recording.host().actual.sysctls.insert("net/ipv4/ip_forward".into(), "0".into());
    reconciler.repair().await;
}

fn repeated(problems: &Problems) -> Vec<String> {
    let list = problems.list().into_iter();
    list.filter(|row| row.code == ProblemCode::RepairRepeated).map(|row| row.object).collect()
}

#[tokio::test(start_paused = true)]
async fn third_repair_within_a_minute_is_a_problem() {
    let (recording, mut reconciler, problems) = host();
    reconciler.change(desired()).await.expect("all in place");
    for _ in 0..2 {
        clear_and_repair(&recording, &mut reconciler).await;
        tokio::time::advance(Duration::from_secs(29)).await;
    }
    recording.host().actual.files.clear();
    reconciler.repair().await;
    assert!(problems.list().is_empty(), "repairs of several objects do not add up");
    clear_and_repair(&recording, &mut reconciler).await;
    assert_eq!(repeated(&problems), ["net.ipv4.ip_forward"]);
    assert!(problems.list()[0].cause.contains("net.ipv4.ip_forward"));
}

#[tokio::test(start_paused = true)]
async fn slow_repairs_are_no_problem() {
    let (recording, mut reconciler, problems) = host();
    reconciler.change(desired()).await.expect("all in place");
    for _ in 0..10 {
        clear_and_repair(&recording, &mut reconciler).await;
        tokio::time::advance(Duration::from_secs(31)).await;
    }
    assert!(problems.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn repeated_repair_ends_after_a_quiet_minute() {
    let (recording, mut reconciler, problems) = host();
    reconciler.change(desired()).await.expect("all in place");
    for _ in 0..3 {
        clear_and_repair(&recording, &mut reconciler).await;
    }
    tokio::time::advance(Duration::from_secs(50)).await;
    clear_and_repair(&recording, &mut reconciler).await;
    tokio::time::advance(WINDOW - Duration::from_secs(1)).await;
    reconciler.repair().await;
    assert_eq!(repeated(&problems).len(), 1, "each repair begins the minute anew");
    tokio::time::advance(Duration::from_secs(1)).await;
    reconciler.repair().await;
    assert!(problems.list().is_empty());
}

#[tokio::test]
async fn missing_and_foreign_devices_are_told_apart() {
    let (recording, mut reconciler, _) = host();
    recording.host().actual.links.clear();
    let error = reconciler.change(desired()).await.expect_err("no device");
    assert!(matches!(error, ReconcileError::Missing(_)), "{error}");
    let foreign = Link { alias: String::new(), ..link(false, 1500) };
    recording.host().actual.links.insert("hopsack0".into(), foreign);
    let error = reconciler.change(desired()).await.expect_err("not ours");
    assert!(matches!(error, ReconcileError::Foreign(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn notices_about_our_objects_make_a_turn_due() {
    let (recording, mut reconciler, _) = host();
    reconciler.change(desired()).await.expect("all in place");
    let later = reconciler.due();
    let other = Notice::Link { index: 2, name: "eth0".into() };
    for notice in [other, Notice::Route { protocol: 2 }, Notice::Address { index: 2 }, Notice::Other] {
        reconciler.note(&notice);
        assert_eq!(reconciler.due(), later, "{notice:?}");
    }
    recording.notify();
    let notice = reconciler.changed().await;
    reconciler.note(&notice);
    assert!(reconciler.due() < later);
}
