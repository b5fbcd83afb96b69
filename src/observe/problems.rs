//! The list of problems that last: one list for status, readiness, metrics, log and service
//! manager.
//!
//! A subsystem raises a problem when it finds a condition that it cannot repair, and ends it when
//! the condition is over. A problem is identified by its code and its object. The list decides
//! nothing; nobody acts on a problem but people.
//!
//! Invariant: the log has one line for each problem that begins, changes its cause, or ends.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::api::{Problem, ProblemCode, shown};

/// Number of problems of one kind that [`Problems::replace`] lists. A writer to the store may
/// make as many as it likes.
const MOST: usize = 16;
/// Object of the problem that stands for those which are not listed.
const REST: &str = "others";

/// Problems that last. Any thread may raise, end and read them.
#[derive(Debug, Default)]
pub struct Problems {
    entries: Mutex<Vec<Entry>>,
}

/// A problem and the time when it began. The newest cause is last in the list.
#[derive(Debug)]
struct Entry {
    code: ProblemCode,
    object: String,
    cause: String,
    since: Instant,
}

impl Problems {
    /// Records that `object` has the problem `code`, and logs it if the problem or its cause is
    /// new.
    pub fn raise(&self, code: ProblemCode, object: &str, cause: impl Into<String>) {
        let (cause, object) = (cause.into(), shown(object));
        let (cause, object) = (shown(&cause), object.as_ref());
        if self.set(code, object, &cause) {
            tracing::error!(%code, object, %cause, "problem");
        }
    }

    /// Like [`Problems::raise`], but a new cause of a known problem is not logged: for causes with
    /// a number that grows.
    pub fn refresh(&self, code: ProblemCode, object: &str, cause: impl Into<String>) {
        if self.has_object(code, object) {
            self.set(code, &shown(object), &shown(&cause.into()));
        } else {
            self.raise(code, object, cause);
        }
    }

    /// Removes a problem, and logs its end if there was one.
    pub fn end(&self, code: ProblemCode, object: &str) {
        let object = shown(object);
        self.end_where(|entry| entry.code == code && entry.object == object);
    }

    /// Removes all problems of a kind, whatever their object.
    pub fn end_all(&self, code: ProblemCode) {
        self.end_where(|entry| entry.code == code);
    }

    /// Makes `found` the problems of a kind: pairs of object and cause. At most `MOST` are
    /// listed; the rest is a number.
    pub fn replace(&self, code: ProblemCode, mut found: Vec<(String, String)>) {
        if found.len() > MOST {
            let rest = found.len() - MOST;
            found.truncate(MOST);
            found.push((REST.to_owned(), format!("{rest} or more others have a problem of this kind")));
        }
        let is_found = |entry: &Entry| found.iter().any(|(object, _)| shown(object) == entry.object);
        self.end_where(|entry| entry.code == code && !is_found(entry));
        for (object, cause) in found {
            if object == REST {
                self.refresh(code, &object, cause);
            } else {
                self.raise(code, &object, cause);
            }
        }
    }

    /// All problems, the one with the newest cause first.
    #[must_use]
    pub fn list(&self) -> Vec<Problem> {
        let problem = |entry: &Entry| Problem {
            code: entry.code,
            object: entry.object.clone(),
            cause: entry.cause.clone(),
            since_seconds: entry.since.elapsed().as_secs(),
        };
        self.entries().iter().rev().map(problem).collect()
    }

    /// Whether there is a problem of this kind.
    #[must_use]
    pub fn has(&self, code: ProblemCode) -> bool {
        self.entries().iter().any(|entry| entry.code == code)
    }

    /// When the oldest problem of this kind began; `None` if there is none.
    #[must_use]
    pub fn since(&self, code: ProblemCode) -> Option<Instant> {
        self.entries().iter().filter(|entry| entry.code == code).map(|entry| entry.since).min()
    }

    /// Whether this object has a problem of this kind.
    #[must_use]
    pub fn has_object(&self, code: ProblemCode, object: &str) -> bool {
        let object = shown(object);
        self.entries().iter().any(|entry| entry.code == code && entry.object == object)
    }

    /// Returns whether the problem or its cause is new.
    fn set(&self, code: ProblemCode, object: &str, cause: &str) -> bool {
        let mut entries = self.entries();
        let known = entries.iter().position(|entry| entry.code == code && entry.object == object);
        let since = match known {
            Some(index) if entries[index].cause == cause => return false,
            Some(index) => entries.remove(index).since,
            None => Instant::now(),
        };
        entries.push(Entry { code, object: object.to_owned(), cause: cause.to_owned(), since });
        true
    }

    fn end_where(&self, is_over: impl Fn(&Entry) -> bool) {
        for entry in self.entries().extract_if(.., |entry| is_over(entry)) {
            let seconds = entry.since.elapsed().as_secs();
            tracing::info!(code = %entry.code, object = entry.object, seconds, "problem over");
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ProblemCode::{RepairFailed, StoreUnavailable};

    use super::*;

    fn seen(problems: &Problems) -> Vec<(ProblemCode, String, String)> {
        problems.list().into_iter().map(|problem| (problem.code, problem.object, problem.cause)).collect()
    }

    #[test]
    fn newest_cause_comes_first() {
        let problems = Problems::default();
        problems.raise(StoreUnavailable, "etcd", "no answer");
        problems.raise(RepairFailed, "hopsack0", "EPERM");
        assert_eq!(seen(&problems)[0].0, RepairFailed);
        problems.raise(StoreUnavailable, "etcd", "no answer");
        assert_eq!(seen(&problems)[0].0, RepairFailed, "the same cause is not news");
        problems.raise(StoreUnavailable, "etcd", "certificate expired");
        assert_eq!(
            seen(&problems),
            [
                (StoreUnavailable, "etcd".to_owned(), "certificate expired".to_owned()),
                (RepairFailed, "hopsack0".to_owned(), "EPERM".to_owned())
            ]
        );
    }

    #[test]
    fn new_cause_keeps_the_begin() {
        let problems = Problems::default();
        problems.raise(StoreUnavailable, "etcd", "no answer");
        let since = problems.since(StoreUnavailable).expect("it lasts");
        problems.raise(StoreUnavailable, "etcd", "another reason");
        assert_eq!(problems.since(StoreUnavailable), Some(since));
    }

    #[test]
    fn problem_ends_by_code_and_object() {
        let problems = Problems::default();
        problems.raise(RepairFailed, "a", "x");
        problems.raise(RepairFailed, "b", "x");
        problems.end(RepairFailed, "a");
        assert_eq!(seen(&problems), [(RepairFailed, "b".to_owned(), "x".to_owned())]);
        problems.end_all(RepairFailed);
        assert!(!problems.has(RepairFailed) && problems.since(RepairFailed).is_none());
    }
}
