//! The interface between the registry and a subsystem that has something to report.

use std::fmt;
use std::pin::Pin;

use super::encoder::Encoder;
use crate::api::{DropRow, Explanation, PeerRow, RouteRow, Status};

/// A report that may have to ask the kernel first.
pub type Pending<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A subsystem that reports about itself. Each method adds the part's own facts and leaves those of
/// other parts alone. A method that a part does not implement adds nothing.
///
/// Parts are asked in the order in which they were added. `explain` depends on it: a part may read
/// what the parts before it have found about the packet.
pub trait Part: fmt::Debug + Send + Sync {
    /// Fills in the part's fields of `status`.
    fn status(&self, _status: &mut Status) {}

    /// Adds peers, or fills in the part's columns of peers that an earlier part added.
    fn peers(&self, _rows: &mut Vec<PeerRow>) {}

    /// Adds routes.
    fn routes(&self, _rows: &mut Vec<RouteRow>) {}

    /// Adds counters of dropped packets.
    fn drops<'a>(&'a self, _drops: &'a mut Drops) -> Pending<'a> {
        Box::pin(std::future::ready(()))
    }

    /// Adds the part's decision about a packet for `explanation.address`.
    fn explain<'a>(&'a self, _explanation: &'a mut Explanation) -> Pending<'a> {
        Box::pin(std::future::ready(()))
    }

    /// Writes the part's metrics. The names carry a prefix of the part where the name alone would
    /// be ambiguous.
    fn metrics(&self, _encoder: &mut Encoder<'_>) -> fmt::Result {
        Ok(())
    }
}

/// Counters of dropped packets, collected from all parts. A counter that is zero is left out.
#[derive(Debug, Default)]
pub struct Drops {
    rows: Vec<DropRow>,
}

impl Drops {
    /// Adds `packets` to the counter of `direction` and `reason`.
    pub fn add(&mut self, direction: &str, reason: &str, packets: u64, meaning: &str) {
        if packets == 0 {
            return;
        }
        let same = |row: &&mut DropRow| row.direction == direction && row.reason == reason;
        match self.rows.iter_mut().find(same) {
            Some(row) => row.packets += packets,
            None => self.rows.push(DropRow {
                direction: direction.to_owned(),
                reason: reason.to_owned(),
                packets,
                meaning: meaning.to_owned(),
            }),
        }
    }

    /// The counters, those of `egress` first.
    #[must_use]
    pub fn into_rows(mut self) -> Vec<DropRow> {
        self.rows.sort_by(|a, b| a.direction.cmp(&b.direction));
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_one_reason_are_summed() {
        let mut drops = Drops::default();
        drops.add("ingress", "socket_queue_full", 2, "the queue was full");
        drops.add("egress", "no_route", 1, "no lease");
        drops.add("egress", "multicast", 0, "multicast");
        drops.add("ingress", "socket_queue_full", 3, "the queue was full");
        let rows: Vec<_> =
            drops.into_rows().into_iter().map(|row| (row.direction, row.reason, row.packets)).collect();
        assert_eq!(
            rows,
            [
                ("egress".to_owned(), "no_route".to_owned(), 1),
                ("ingress".to_owned(), "socket_queue_full".to_owned(), 5)
            ]
        );
    }
}
