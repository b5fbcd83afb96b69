//! Tests of the RIB: order and repetition of changes.

use ipnet::Ipv4Net;

use super::super::lease::{Dialect, Origin, Public};
use super::*;

fn lease(third: u8, host: u8, revision: u64) -> Lease {
    Lease {
        name: format!("h{host}"),
        subnets: vec![IpNet::V4(Ipv4Net::new_assert([10, 1, third, 0].into(), 24))],
        public: Public { v4: Some([192, 0, 2, host].into()), v6: None },
        dialect: Dialect::Flannel,
        revision,
        origin: Origin::default(),
    }
}

#[test]
fn a_snapshot_replaces_all_older_leases() {
    let mut rib = Rib::default();
    let snapshot = |leases: &[Lease], revision| Change::Snapshot { leases: leases.to_vec(), revision };
    assert!(rib.apply(snapshot(&[lease(1, 1, 1), lease(2, 2, 2)], 2)));
    assert!(!rib.apply(snapshot(&[lease(1, 1, 1), lease(2, 2, 2)], 3)), "nothing has changed");
    assert!(rib.apply(snapshot(&[lease(1, 1, 1)], 4)));
    assert_eq!(rib.leases().count(), 1);
    assert!(!rib.apply(snapshot(&[lease(9, 9, 1)], 3)), "an older list has no effect");
}

#[test]
fn repeated_and_late_deltas_have_no_effect() {
    let mut rib = Rib::default();
    let put = |lease: Lease| Change::Delta(vec![Event::Put(lease)]);
    let subnets = lease(1, 1, 0).subnets;
    assert!(rib.apply(put(lease(1, 1, 5))));
    assert!(!rib.apply(put(lease(1, 1, 5))), "the same delta arrives twice");
    assert!(!rib.apply(put(lease(1, 1, 6))), "a renewal changes nothing");
    assert!(rib.apply(put(lease(1, 7, 8))), "another host owns the subnet now");
    assert!(rib.apply(Change::Delta(vec![Event::Delete { subnets, revision: 9 }])));
    assert!(!rib.apply(put(lease(1, 1, 7))), "older than the deletion");
    assert_eq!(rib.leases().count(), 0);
}
