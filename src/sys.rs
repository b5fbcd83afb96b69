//! The only unsafe code of the crate: small doors to the kernel that std does not have.
//!
//! Nothing here decides anything. Invariant: no public function can break memory safety, whatever it is given.

pub mod netns;
pub mod process;
