//! Objects that are repaired again and again.
//!
//! An object that is repaired [`LIMIT`] times within [`WINDOW`] is probably changed by another
//! program, which sets it back after each repair. That is a problem that names the object and the
//! programs to look for. It ends when the object needed no repair for [`WINDOW`].
//!
//! Nothing here repairs, and nothing here stops a repair. Invariant: memory is bounded, also if
//! another program adds other addresses all the time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::ProblemCode;
use crate::desired::{Object, Step};
use crate::observe::Problems;

/// Number of repairs of one object that is too many.
const LIMIT: usize = 3;

/// Time for which a repair counts.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// Number of objects that are watched at the same time. A host has some ten objects.
const MAX_OBJECTS: usize = 64;

/// Recent repairs, by the name of the object.
#[derive(Debug, Default)]
pub(super) struct Repetition(BTreeMap<String, VecDeque<Instant>>);

impl Repetition {
    /// Takes note of the repairs of one turn. Raises the problem of an object that was repaired too
    /// often, and ends that of an object that is left alone.
    pub(super) fn note(&mut self, repairs: &[&Step], now: Instant, problems: &Problems) {
        let repaired: BTreeMap<String, &Step> = repairs.iter().map(|step| (step.name(), *step)).collect();
        for (name, step) in repaired {
            if self.0.len() == MAX_OBJECTS && !self.0.contains_key(&name) {
                continue;
            }
            let times = self.0.entry(name.clone()).or_default();
            if times.len() == LIMIT {
                times.pop_front();
            }
            times.push_back(now);
            if times.len() == LIMIT && now.duration_since(times[0]) < WINDOW {
                problems.raise(ProblemCode::RepairRepeated, &name, cause(step.object(), &name));
            }
        }
        self.0.retain(|name, times| {
            let is_recent = times.back().is_some_and(|last| now.duration_since(*last) < WINDOW);
            if !is_recent {
                problems.end(ProblemCode::RepairRepeated, name);
            }
            is_recent
        });
    }
}

/// One sentence with the programs that often do this. It has no number that grows: each new cause
/// is a line in the log.
fn cause(object: Object, name: &str) -> String {
    let suspects = match object {
        Object::Sysctl => "look for a firewall, a tuning program (tuned) or a script that sets it",
        Object::Link | Object::Address | Object::Route => {
            "look for a network manager (NetworkManager, systemd-networkd) or a script, and make it leave \
             the overlay device alone"
        }
        Object::Offload => "look for tuned, or an ethtool script of the network configuration",
        Object::File => "look for another daemon that writes it (flanneld), or set node.subnet_env",
    };
    format!("another program keeps changing {name}: {suspects}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Address;

    #[test]
    fn watched_objects_are_bounded() {
        let (mut repetition, problems, now) = (Repetition::default(), Problems::default(), Instant::now());
        for n in 0..=255 {
            let net = std::net::Ipv4Addr::new(192, 0, 2, n).into();
            let address = Address { link: "hopsack0".to_owned(), net: ipnet::IpNet::V4(net) };
            repetition.note(&[&Step::RemoveAddress(address)], now, &problems);
        }
        assert_eq!(repetition.0.len(), MAX_OBJECTS);
        assert!(problems.list().is_empty());
        repetition.note(&[], now + WINDOW, &problems);
        assert!(repetition.0.is_empty());
    }
}
