//! The registry: collects status, lists, explanations and metrics from the parts of the daemon.
//!
//! It exists from the first moment of the start on. Until [`Registry::set_ready`] it answers
//! requests with the reason why the start is not complete.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use super::metrics::Scrape;
use super::part::{Drops, Part};
use super::problems::Problems;
use crate::api::{Answer, DropRow, Explanation, PeerRow, Problem, ProblemCode, Request, RouteRow, Status};
use crate::control::Handler;

/// Parts of one daemon, its problems, and whether it is ready.
#[derive(Debug)]
pub struct Registry {
    started: Instant,
    problems: Arc<Problems>,
    parts: Mutex<Vec<Arc<dyn Part>>>,
    /// The reason why the start is not complete; `None` once it is.
    waiting: Mutex<Option<String>>,
}

impl Default for Registry {
    /// The registry of a daemon that starts now.
    fn default() -> Self {
        Self {
            started: Instant::now(),
            problems: Arc::default(),
            parts: Mutex::default(),
            waiting: Mutex::new(Some("the node is starting".to_owned())),
        }
    }
}

impl Registry {
    /// The daemon's problems.
    #[must_use]
    pub fn problems(&self) -> &Arc<Problems> {
        &self.problems
    }

    /// Adds a part. Parts are asked in the order in which they were added (see [`Part`]).
    pub fn add(&self, part: Arc<dyn Part>) {
        lock(&self.parts).push(part);
    }

    /// Records the reason why the start is not complete yet.
    pub fn wait_for(&self, reason: &str) {
        *lock(&self.waiting) = Some(reason.to_owned());
    }

    /// Records that the start is complete: from now on requests are answered.
    pub fn set_ready(&self) {
        *lock(&self.waiting) = None;
    }

    /// The reason why the start is not complete; `None` once it is.
    #[must_use]
    pub fn waiting(&self) -> Option<String> {
        lock(&self.waiting).clone()
    }

    /// The answer to `hopsack status`.
    pub async fn status(&self) -> Status {
        let dropped_packets = self.drops().await.iter().map(|row| row.packets).sum();
        Status { dropped_packets, ..self.summary() }
    }

    /// The status without the drops. It asks the kernel nothing, so that a probe is cheap.
    #[must_use]
    pub fn summary(&self) -> Status {
        let problems = self.problems.list();
        let cause = |codes: &[ProblemCode]| {
            let mut found = problems.iter().filter(|problem: &&Problem| codes.contains(&problem.code));
            found.next().map(|problem| problem.cause.clone())
        };
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: self.waiting().is_none(),
            uptime_seconds: self.started.elapsed().as_secs(),
            store_trouble: cause(&[ProblemCode::StoreUnavailable]),
            underlay_trouble: cause(&[
                ProblemCode::UnderlayAddress,
                ProblemCode::UnderlayMtu,
                ProblemCode::UnderlayLink,
            ]),
            alarm: cause(&[ProblemCode::DuplicateSubnet]),
            ..Status::default()
        };
        status.problems = problems;
        for part in self.parts() {
            part.status(&mut status);
        }
        status
    }

    /// The answer to `hopsack peers`.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerRow> {
        let mut rows = Vec::new();
        for part in self.parts() {
            part.peers(&mut rows);
        }
        rows
    }

    /// The answer to `hopsack routes`, in the order of the prefixes.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteRow> {
        let mut rows = Vec::new();
        for part in self.parts() {
            part.routes(&mut rows);
        }
        rows.sort_by_cached_key(|row| row.subnet.parse::<IpNet>().ok());
        rows
    }

    /// The answer to `hopsack drops`.
    pub async fn drops(&self) -> Vec<DropRow> {
        let mut drops = Drops::default();
        for part in self.parts() {
            part.drops(&mut drops).await;
        }
        drops.into_rows()
    }

    /// The answer to `hopsack explain`.
    pub async fn explain(&self, address: IpAddr) -> Explanation {
        let mut explanation = Explanation::new(address);
        for part in self.parts() {
            part.explain(&mut explanation).await;
        }
        explanation
    }

    /// The metrics as OpenMetrics text.
    pub async fn metrics(&self) -> String {
        let drops = self.drops().await;
        Scrape { parts: self.parts(), drops, problems: self.problems.list() }.text()
    }

    /// A copy: no lock is held while a part answers.
    fn parts(&self) -> Vec<Arc<dyn Part>> {
        lock(&self.parts).clone()
    }
}

impl Handler for Registry {
    async fn answer(&self, request: Request) -> Answer {
        if let Some(reason) = self.waiting() {
            return Answer::Error(format!("not ready: {reason}"));
        }
        let value = match request {
            Request::Status => serde_json::to_value(self.status().await),
            Request::Peers => serde_json::to_value(self.peers()),
            Request::Routes => serde_json::to_value(self.routes()),
            Request::Drops => serde_json::to_value(self.drops().await),
            Request::Explain { address } => serde_json::to_value(self.explain(address).await),
        };
        value.map_or_else(|error| Answer::Error(error.to_string()), Answer::Ok)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;
    use crate::api::StepCode;
    use crate::observe::encoder::Encoder;
    use crate::observe::part::Pending;

    /// A part that reports one of everything.
    #[derive(Debug)]
    struct Example;

    impl Part for Example {
        fn status(&self, status: &mut Status) {
            status.peers += 2;
        }

        fn routes(&self, rows: &mut Vec<RouteRow>) {
            for subnet in ["10.244.10.0/24", "10.244.9.0/24"] {
                rows.push(RouteRow {
                    subnet: subnet.to_owned(),
                    host: "h2".to_owned(),
                    next_hop: "192.0.2.2:8285".to_owned(),
                    mtu: 1472,
                });
            }
        }

        fn drops<'a>(&'a self, drops: &'a mut Drops) -> Pending<'a> {
            drops.add("egress", "no_route", 3, "no lease holds the destination");
            Box::pin(std::future::ready(()))
        }

        fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
            explanation.step(StepCode::RouteNoLease, "no lease holds it");
            Box::pin(std::future::ready(()))
        }

        fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
            encoder.counters("example", "An example", [([("kind", "a")], 7)])
        }
    }

    fn registry() -> Registry {
        let registry = Registry::default();
        registry.add(Arc::new(Example));
        registry.set_ready();
        registry
    }

    #[tokio::test]
    async fn answers_come_from_parts() {
        let registry = registry();
        let status = registry.status().await;
        assert_eq!((status.peers, status.dropped_packets, status.ready), (2, 3, true));
        let subnets: Vec<_> = registry.routes().into_iter().map(|row| row.subnet).collect();
        assert_eq!(subnets, ["10.244.9.0/24", "10.244.10.0/24"]);
        let explanation = registry.explain([10, 244, 7, 7].into()).await;
        assert!(explanation.has(StepCode::RouteNoLease));
    }

    #[tokio::test]
    async fn problems_are_the_same_everywhere() {
        let registry = registry();
        registry.problems().raise(ProblemCode::StoreUnavailable, "etcd", "no answer");
        let status = registry.status().await;
        assert_eq!(status.store_trouble.as_deref(), Some("no answer"));
        assert_eq!(status.problems[0].code, ProblemCode::StoreUnavailable);
        let metrics = registry.metrics().await;
        assert!(
            metrics.contains("hopsack_problem{code=\"store_unavailable\",object=\"etcd\"} 1"),
            "{metrics}"
        );
        registry.problems().end(ProblemCode::StoreUnavailable, "etcd");
        let status = registry.status().await;
        assert!(status.store_trouble.is_none() && status.problems.is_empty());
    }

    #[tokio::test]
    async fn metrics_come_from_parts() {
        let text = registry().metrics().await;
        for line in [
            "hopsack_example_total{kind=\"a\"} 7",
            "hopsack_dropped_packets_total{direction=\"egress\",reason=\"no_route\"} 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[tokio::test]
    async fn requests_wait_until_ready() {
        let registry = Registry::default();
        let why = "a reason";
        registry.wait_for(why);
        let Answer::Error(reason) = registry.answer(Request::Status).await else { panic!("not ready") };
        assert!(reason.contains(why));
        registry.set_ready();
        assert!(matches!(registry.answer(Request::Status).await, Answer::Ok(_)));
    }
}
