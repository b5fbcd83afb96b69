//! The start of a node.

use std::sync::Arc;

use super::announcement::{self, Announcement};
use super::error::NodeError;
use super::map::Map;
use super::next_hop::NextHopPart;
use super::observe::{HostPart, Reports};
use super::refused_sends::RefusedSends;
use super::service_manager::{ServiceManager, Signals};
use super::store_source::StoreSource;
use super::underlay::{PublicAddress, follow_routes, report_link};
use super::wait::Wait;
use super::{Node, join, privileges, servers, subnet_env};
use crate::backend::{Backend, Prepared, Setup, Stop};
use crate::config::{Config, StoreConfig};
use crate::fastpath;
use crate::observe::Registry;
use crate::reconcile::{Kernel, Linux, Reconciler};
use crate::route::{Local, Networks};
use crate::store::StorePart;
use crate::sys::Capabilities;

impl Node {
    /// Brings everything up, or nothing. `None`: a signal ended it while it waited for its
    /// address or its store.
    pub async fn start(config: Config) -> Result<Option<Self>, NodeError> {
        privileges::prepare(&config);
        let capabilities = privileges::take(&config)?;
        let (kernel, source) = (Kernel::Linux(Linux::new()?), StoreSource::Configured);
        Self::start_on(config, &capabilities, (kernel, source)).await
    }

    /// Like [`Node::start`], on the host of `kernel`, with a store from `source`.
    pub(super) async fn start_on(
        mut config: Config,
        capabilities: &Capabilities,
        (kernel, source): (Kernel, StoreSource),
    ) -> Result<Option<Self>, NodeError> {
        let no_signals = |error| NodeError::Environment {
            code: "no_signals",
            text: format!("cannot wait for signals: {error}"),
        };
        let mut signals = Signals::new().map_err(no_signals)?;
        let registry = Arc::<Registry>::default();
        let servers = servers::start(&config, &registry).await?;
        let reader = kernel.reader();
        let store_addresses = config.store.addresses();
        let mut wait = Wait::new(&registry, &mut signals);
        let Some(mut underlay) = wait.for_underlay(&reader, (&config.node, &store_addresses)).await? else {
            return Ok(None);
        };
        let prepared = Prepared::new(&config, capabilities)?;
        let pins = fastpath::is_prepared(&config.node.bpf_dir()).map_err(|error| error.to_string());
        let is_fast = prepared.fast_path(underlay.addresses[0], pins).is_ok();
        let abilities = announcement::abilities(prepared.announce(), underlay.mtu, is_fast);
        if let StoreConfig::Etcd(etcd) = &mut config.store {
            etcd.abilities = abilities;
            etcd.subnets = prepared.subnets();
        }
        let opened = join::open_store((&source, &config), &underlay, &mut wait).await?;
        let Some((store, opened)) = opened else { return Ok(None) };
        let mut map = Map::new(opened.snapshot.clone());
        let peers = map.peer_addresses(underlay.addresses[0]);
        follow_routes(&reader, &mut underlay, peers, &config.overlay.device).await?;
        let local = join::local(&config, &underlay, &opened)?;
        let (name, networks) = (opened.lease.name, opened.cluster.networks);
        prepared.check((&name, &local.subnets), local.port)?;
        tracing::info!(
            host = name, public_ip = %local.public, interface = underlay.interface,
            store = store.describe(), "joined the cluster"
        );

        let underlay_mtu = underlay.mtu;
        let setup = Setup { name: name.clone(), networks, local: local.clone(), underlay_mtu };
        let mut backend = prepared.start(&config, setup).await?;
        let mut reconciler = Reconciler::new(kernel, registry.problems().clone());
        let rest = (&mut reconciler, &mut backend, &mut map);
        if let Err(error) = bring_up(rest, (&config, &networks, &local)).await {
            backend.stop(Stop::RollBack).await;
            return Err(error);
        }

        let problems = registry.problems().clone();
        report_link(&problems, &underlay);
        let position = (local.clone(), underlay.interface.clone());
        let host = HostPart::new((name, config.overlay.device.clone()), networks, position, reader, problems);
        let reports = reports(registry, host, store.describe(), (&backend, &reconciler));
        let public_address = PublicAddress::new(&underlay, local.public);
        let service_manager = ServiceManager::default();
        let mut node = Self {
            config,
            signals,
            servers,
            store,
            map,
            backend,
            reconciler,
            reports,
            networks,
            local,
            announcement: Announcement::new(abilities),
            public_address,
            refused_sends: RefusedSends::default(),
            service_manager,
        };
        // The way to the peers was not known before the store was opened.
        node.announcement.link_mtu(underlay.mtu, &mut node.store);
        node.report_remarks();
        Ok(Some(node))
    }
}

/// Lets all parts of a started node report, in the order in which a packet passes through them.
fn reports(
    registry: Arc<Registry>,
    host: HostPart,
    store: String,
    (backend, reconciler): (&Backend, &Reconciler),
) -> Reports {
    let host = Arc::new(host);
    let store = Arc::new(StorePart::new(store, registry.problems().clone()));
    registry.add(host.clone());
    backend.parts().into_iter().for_each(|part| registry.add(part));
    registry.add(Arc::new(NextHopPart { device: host.device.clone(), kernel: host.kernel.clone() }));
    registry.add(store.clone());
    registry.add(reconciler.repairs().clone());
    registry.set_ready();
    Reports { registry, host, store }
}

/// Puts kernel and map in place, and last subnet.env, which tells other programs that the overlay
/// can be used.
async fn bring_up(
    (reconciler, backend, map): (&mut Reconciler, &mut Backend, &mut Map),
    (config, networks, local): (&Config, &Networks, &Local),
) -> Result<(), NodeError> {
    let desired = map.desired(backend);
    reconciler.change(desired.clone()).await?;
    map.publish(backend);
    tracing::info!(peers = backend.peers(), "route table published");
    reconciler.change(desired.merge(subnet_env::desired(&config.node, networks, local))).await?;
    Ok(backend.keep()?)
}
