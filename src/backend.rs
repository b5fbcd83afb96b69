//! Backends: how the map of subnets is put into effect.
//!
//! Each backend has the same interface. [`Prepared`] is a backend before the store is opened: it
//! says what the lease announces and how many bytes of each packet it takes. [`Backend`] is a
//! running one: it says what the kernel should hold ([`Backend::desired`]), puts the map into
//! effect where that is no kernel state ([`Backend::apply`]), and tells what happens in it
//! ([`Backend::event`]).
//!
//! A backend knows the map, not the store; it changes no kernel state that it can describe as a row
//! of [`crate::desired::Desired`].
#![forbid(unsafe_code)]

mod error;
mod event;
mod interface;
mod null;
mod overhead;
mod setup;
mod userspace;

pub use error::BackendError;
pub use event::{DuplicateSubnet, Event, Renewal, Stop};
pub use interface::{
    Backend, Prepared, check_credentials, check_encryption_port, check_fast_path, check_port, desired,
    overhead,
};
pub use overhead::Overhead;
pub use setup::Setup;
pub use userspace::{DeviceError, EncryptionError, NoRing, SocketError, is_own_device};
