//! Metrics in OpenMetrics text.
//!
//! A scrape asks each part for its metrics ([`Part::metrics`]) and adds those that come from all
//! parts: dropped packets and problems. Nothing is counted here, so that metrics cost a packet
//! nothing.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry;

use super::encoder::Encoder;
use super::part::Part;
use crate::api::{DropRow, Problem};

/// What one scrape shows.
#[derive(Debug)]
pub(super) struct Scrape {
    pub(super) parts: Vec<Arc<dyn Part>>,
    pub(super) drops: Vec<DropRow>,
    pub(super) problems: Vec<Problem>,
}

impl Scrape {
    /// The metrics as OpenMetrics text.
    pub(super) fn text(self) -> String {
        let mut registry = registry::Registry::with_prefix("hopsack");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        match text::encode(&mut out, &registry) {
            Ok(()) => out,
            // Writing to a String cannot fail. If it did, half a page must not pass for a whole
            // one.
            Err(fmt::Error) => String::new(),
        }
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut encoder = Encoder(encoder);
        for part in &self.parts {
            part.metrics(&mut encoder)?;
        }
        let drop = |row: &DropRow| {
            ([("direction", row.direction.clone()), ("reason", row.reason.clone())], row.packets)
        };
        encoder.counters("dropped_packets", "Dropped packets by reason", self.drops.iter().map(drop))?;
        let problem = |problem: &Problem| {
            ([("code", problem.code.label().to_owned()), ("object", problem.object.clone())], 1)
        };
        let problems = self.problems.iter().map(problem);
        encoder.gauges("problem", "1 for each problem that lasts, as in hopsack status", problems)
    }
}
