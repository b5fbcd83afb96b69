//! Names of network devices.
#![forbid(unsafe_code)]

/// Whether the kernel takes this name. IFNAMSIZ is 16 with the final zero
/// (include/uapi/linux/if.h).
pub(super) fn is_device_name(name: &str) -> bool {
    let characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let length = (1..=15).contains(&name.len());
    length && characters && !matches!(name, "." | ".." | "all" | "default")
}
