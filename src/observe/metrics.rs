//! Metrics in OpenMetrics text.
//!
//! A scrape asks each part for its metrics ([`Part::metrics`]) and adds those of the registry itself: dropped packets and
//! problems, which come from all parts. Nothing is counted here; a packet costs no metric. Names follow the Prometheus
//! conventions: base units, `_total` for counters, few labels. Each name gets the prefix `hopsack_`.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry;

use super::part::Part;
use crate::api::{DropRow, Problem};

/// Writes metrics of one scrape. Each name must be written once only.
#[derive(Debug)]
pub struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    /// Writes a counter without labels. The suffix `_total` is added to the name.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)
    }

    /// Writes a counter for each set of labels. The suffix `_total` is added to the name.
    pub fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Writes a gauge without labels.
    pub fn gauge<N: EncodeGaugeValue>(&mut self, name: &str, help: &str, value: N) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    }

    /// Writes a gauge for each set of labels.
    pub fn gauges<L: EncodeLabelSet, N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Writes a histogram. The name must end with its unit.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        histogram.encode(family)
    }

    /// Writes facts as labels of a metric that is always 1. The suffix `_info` is added to the name.
    pub fn info(&mut self, name: &str, help: &str, facts: &impl EncodeLabelSet) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(facts)
    }
}

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
            // Writing to a String cannot fail. If it did, half a page must not pass for a whole one.
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
