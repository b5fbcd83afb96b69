//! Meaning of keys and values: the part of list and watch that differs between kinds of objects.
#![forbid(unsafe_code)]

use super::source::Kv;

/// Reads keys and values of one kind of objects.
pub(crate) trait Decode {
    /// An object, made of a key and its value.
    type Object: Clone + PartialEq + std::fmt::Debug;

    /// Says what a key is. The function is pure: the same key and value always give the same
    /// answer.
    fn decode(&self, kv: &Kv) -> Decoded<Self::Object>;
}

/// What a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decoded<T> {
    /// An object.
    Object(T),
    /// A key that should be an object but is invalid, with the reason.
    Invalid(String),
    /// A key with another meaning.
    Other,
}

/// An invalid key, and the reason.
pub(crate) type InvalidKey = (String, String);
