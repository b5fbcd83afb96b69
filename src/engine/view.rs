//! [`EngineView`]: reads an engine from any thread, and publishes route tables to it.
//!
//! It keeps no worker alive and stops none. Invariant: publishing takes no lock and wakes no
//! worker.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::account::Account;
use super::control_inbox::ControlInbox;
use super::io::Io;
use super::priority::RunningThreads;
use super::slow_path::SlowPathQueue;
use crate::forward::Table;
use crate::sys::udp;

/// The readable side of an engine. Any thread may keep one, also after the engine has ended.
#[derive(Debug, Clone)]
pub struct EngineView {
    name: &'static str,
    pub(super) table: Arc<ArcSwap<Table>>,
    pub(super) accounts: Vec<Arc<Account>>,
    receiving: Arc<ReceivingSockets>,
    workers: usize,
    pub(super) slow_path: Arc<SlowPathQueue>,
    pub(super) threads: RunningThreads,
    pub(super) control_inbox: Arc<ControlInbox>,
}

/// Duplicates of the receiving sockets, to ask the kernel for their drop counts.
#[derive(Debug)]
struct ReceivingSockets {
    sockets: ArcSwap<Vec<UdpSocket>>,
    /// Drops of sockets that were replaced.
    earlier_drops: AtomicU64,
}

impl ReceivingSockets {
    fn drops(&self) -> u64 {
        let drops = |socket: &UdpSocket| u64::from(udp::queue_drops(socket).unwrap_or(0));
        self.earlier_drops.load(Ordering::Relaxed) + self.sockets.load().iter().map(drops).sum::<u64>()
    }
}

impl EngineView {
    pub(super) fn new(io: &Io, table: Table) -> std::io::Result<Self> {
        let sockets = ArcSwap::from_pointee(io.receiving()?);
        Ok(Self {
            name: io.name(),
            table: Arc::new(ArcSwap::from_pointee(table)),
            accounts: (0..io.workers()).map(|_| Arc::default()).collect(),
            receiving: Arc::new(ReceivingSockets { sockets, earlier_drops: AtomicU64::new(0) }),
            workers: io.workers(),
            slow_path: Arc::default(),
            threads: RunningThreads::default(),
            control_inbox: Arc::default(),
        })
    }

    /// Replaces the receiving sockets, and keeps the drop counts of the old ones.
    pub(super) fn replace_sockets(&self, sockets: Vec<UdpSocket>) {
        let drops = self.receiving.drops();
        self.receiving.sockets.store(Arc::new(sockets));
        self.receiving.earlier_drops.store(drops, Ordering::Relaxed);
    }

    /// The engine's name.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.name
    }

    /// Publishes a route table: workers use it from their next turn on. Returns the last table,
    /// which other threads may still use. The caller keeps it until they do not: the thread that
    /// drops a table last frees all of it, and this must not be a worker.
    #[must_use]
    pub fn publish(&self, table: Table) -> Arc<Table> {
        self.table.swap(Arc::new(table))
    }

    /// The route table in use.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The queue in which workers put packets that their own sockets do not send.
    #[must_use]
    pub fn slow_path(&self) -> &Arc<SlowPathQueue> {
        &self.slow_path
    }

    /// The inbox in which workers put the control messages of peers.
    #[must_use]
    pub fn control_inbox(&self) -> &Arc<ControlInbox> {
        &self.control_inbox
    }

    /// How many workers the engine has.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The accounts of the workers, and after them those of the
    /// [`SlowPathWriter`](super::SlowPathWriter)s.
    #[must_use]
    pub fn accounts(&self) -> &[Arc<Account>] {
        &self.accounts
    }

    /// Datagrams that the kernel dropped because the receive queue of a socket was full.
    #[must_use]
    pub fn socket_drops(&self) -> u64 {
        self.receiving.drops()
    }
}
