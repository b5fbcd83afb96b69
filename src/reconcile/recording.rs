//! A host in memory: it does what the kernel does with a step, remembers the steps, and can be
//! disturbed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::error::ReconcileError;
use crate::desired::{Actual, Step};
use crate::netlink::{Address, Link, Notice};
use crate::packet::Family;

/// What the host holds.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// What a read shows.
    pub(crate) actual: Actual,
    /// Steps that were taken, in order.
    pub(crate) steps: Vec<Step>,
    /// Devices of the underlay. The first one has the default routes.
    pub(crate) links: Vec<Link>,
    /// Addresses of the underlay.
    pub(crate) addresses: Vec<Address>,
    /// A step of this kind is refused.
    pub(crate) refuse: Option<fn(&Step) -> bool>,
    notices: u32,
}

/// A kernel that is a table. Clones are the same host.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    host: Arc<Mutex<Host>>,
    changed: Arc<Notify>,
}

impl Recording {
    /// The host, to be looked at and disturbed.
    pub(crate) fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that something changed.
    pub(crate) fn notify(&self) {
        self.host().notices += 1;
        self.changed.notify_one();
    }

    pub(super) fn apply(&self, step: &Step) -> Result<(), ReconcileError> {
        let mut host = self.host();
        if host.refuse.is_some_and(|refuse| refuse(step)) {
            return Err(ReconcileError::Missing("refused".to_owned()));
        }
        host.actual.take(step);
        host.steps.push(step.clone());
        Ok(())
    }

    pub(super) fn default_interface(&self, family: Family) -> Option<u32> {
        let host = self.host();
        let has =
            |index| host.addresses.iter().any(|a| a.index == index && Family::of(a.net.addr()) == family);
        host.links.iter().map(|link| link.index).find(|index| has(*index))
    }

    pub(super) async fn changed(&self) -> Notice {
        loop {
            {
                let mut host = self.host();
                if host.notices > 0 {
                    host.notices -= 1;
                    return Notice::Lost;
                }
            }
            self.changed.notified().await;
        }
    }
}
