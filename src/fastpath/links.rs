//! The places where the programs are attached, and the links that hold them there.
//!
//! It loads no program.
//!
//! Invariant: a link that stands for the right interface is updated, never replaced, so that no
//! packet passes the hook without a program.

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};

use super::error::{AttachError, FastPathError};
use super::object;
use super::pins::{Pins, Role};
use crate::sys::bpf;

/// The interfaces to which the programs are attached, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// The overlay device.
    pub overlay: String,
    /// The devices that lead to peers. They must be Ethernet devices.
    pub underlays: Vec<String>,
    /// The far end of the veth pair that merges TCP segments.
    pub gro: Option<String>,
}

/// A hook with one of our programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) role: Role,
    pub(super) interface: String,
    index: u32,
}

/// What is found at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookState {
    /// What the program does there.
    pub role: Role,
    /// Name of the interface.
    pub interface: String,
    /// Whether our program is there.
    pub is_attached: bool,
    /// The kernel's numbers of the programs of others there, in the order in which they run.
    pub others: Vec<u32>,
}

impl Role {
    fn program(self) -> &'static str {
        match self {
            Self::Overlay => object::EGRESS,
            Self::Underlay => object::INGRESS,
            Self::Gro => object::MERGED,
        }
    }

    fn hook(self) -> (TcAttachType, bpf::Hook) {
        match self {
            Self::Overlay => (TcAttachType::Egress, bpf::Hook::Egress),
            Self::Underlay | Self::Gro => (TcAttachType::Ingress, bpf::Hook::Ingress),
        }
    }
}

impl Interfaces {
    /// The hooks, in the order in which programs are attached: first what receives.
    fn places(&self) -> Result<Vec<Place>, FastPathError> {
        let gro = self.gro.iter().map(|name| (Role::Gro, name));
        let underlays = self.underlays.iter().map(|name| (Role::Underlay, name));
        let all = gro.chain(underlays).chain([(Role::Overlay, &self.overlay)]);
        all.map(|(role, name)| {
            let index = bpf::interface_index(name)
                .map_err(|error| FastPathError::Interface { name: name.clone(), error })?;
            Ok(Place { role, interface: name.clone(), index })
        })
        .collect()
    }
}

/// Attaches the programs to exactly these interfaces. Links of an earlier process get our programs.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interfaces: &Interfaces,
) -> Result<Vec<Place>, FastPathError> {
    let places = interfaces.places()?;
    for place in &places {
        let program = object::program(ebpf, place.role.program())?;
        attach_one(program, pins, place)?;
    }
    for role in Role::ALL {
        let keep: Vec<u32> =
            places.iter().filter(|place| place.role == role).map(|place| place.index).collect();
        pins.remove_links(role, &keep)?;
    }
    Ok(places)
}

fn attach_one(program: &mut SchedClassifier, pins: &Pins, place: &Place) -> Result<(), FastPathError> {
    let path = pins.link(place.role, place.index);
    let name = &place.interface;
    let is_of_interface = bpf::pinned_link(&path).is_ok_and(|link| link.interface == place.index);
    if is_of_interface {
        let pinned = PinnedLink::from_pin(&path).map_err(FastPathError::attach(name))?;
        let link =
            SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(FastPathError::attach(name))?;
        let updated = program.attach_to_link(link).map_err(FastPathError::attach(name))?;
        // The pin keeps the link; this closes only our descriptor.
        drop(program.take_link(updated).map_err(FastPathError::attach(name))?);
        return Ok(());
    }
    pins.remove(&path)?;
    let (attach_type, _) = place.role.hook();
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let make = || -> Result<(), AttachError> {
        let id = program.attach_with_options(name, attach_type, options)?;
        FdLink::try_from(program.take_link(id)?)?.pin(&path)?;
        Ok(())
    };
    make().map_err(FastPathError::attach(name))
}

/// What the kernel says about a hook.
pub(super) fn state(ebpf: &mut Ebpf, place: &Place) -> Result<HookState, FastPathError> {
    let name = place.role.program();
    let info = object::program(ebpf, name)?.info().map_err(FastPathError::program(name))?;
    let (_, hook) = place.role.hook();
    let found = match bpf::programs(place.index, hook) {
        // The fast path works without the veth pair, which any program may remove.
        Err(error) if place.role == Role::Gro && error.raw_os_error() == Some(libc::ENODEV) => Vec::new(),
        found => found.map_err(|error| FastPathError::Query { name: place.interface.clone(), error })?,
    };
    let (ours, others): (Vec<u32>, Vec<u32>) =
        found.iter().map(|attached| attached.program).partition(|program| *program == info.id());
    let (role, interface) = (place.role, place.interface.clone());
    Ok(HookState { role, interface, is_attached: !ours.is_empty(), others })
}
