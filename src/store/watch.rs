//! List and watch: keeps a copy of all objects under one prefix of a store up to date.
//!
//! The code is generic over two things. A [`Decode`] says which keys are objects and what their
//! values mean: leases today, Services and Kubernetes objects later. A [`Source`] says how a list
//! and a watch are asked for. Nothing here knows etcd, leases or routes.
//!
//! Invariant: the copy equals the store at [`Cache::revision`].
#![forbid(unsafe_code)]

mod cache;
mod decode;
mod list_watch;
mod source;

#[cfg(test)]
pub(crate) use cache::PutResult;
pub(crate) use cache::{Cache, Changed};
pub(crate) use decode::{Decode, Decoded, InvalidKey};
pub(crate) use list_watch::{Comparison, Delta, ListWatch, Relisted, Step};
pub(crate) use source::{KeyEvent, Kv, Listing, Message, Messages, Source};
