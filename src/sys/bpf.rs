//! Three questions about eBPF that aya does not answer with CAP_BPF and CAP_NET_ADMIN alone: which
//! programs are at a tcx hook, what a pinned link is attached to, and whether a directory is a
//! bpffs. Further, the mount of a bpffs, and the state of the interfaces that programs are attached
//! to.
//!
//! It loads and attaches nothing.
//!
//! Invariant: no descriptor outlives the call that has opened it. Sources: bpf(2),
//! `include/uapi/linux/bpf.h`, `kernel/bpf/mprog.c`.

use std::ffi::{CStr, CString, c_long};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A tcx hook of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that the interface has received.
    Ingress,
    /// Packets that the interface is about to send.
    Egress,
}

/// A program at a tcx hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The kernel's number of the program.
    pub program: u32,
    /// The kernel's number of the link; 0: the program was attached without a link.
    pub link: u32,
}

/// A tcx link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcxLink {
    /// The kernel's number of the link.
    pub id: u32,
    /// The kernel's number of its program.
    pub program: u32,
    /// Index of the interface; 0: the interface is gone.
    pub interface: u32,
}

const BPF_OBJ_GET: c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: c_long = 15;
const BPF_PROG_QUERY: c_long = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// BPF_LINK_TYPE_TCX.
const LINK_TYPE_TCX: u32 = 11;
/// The kernel's limit of programs at a hook (BPF_MPROG_MAX).
const MOST_PROGRAMS: usize = 64;

/// `bpf_attr.query`, as far as a query of a tcx hook has fields.
#[repr(C)]
#[derive(Default)]
struct Query {
    interface: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    attach_flags_of_programs: u64,
    links: u64,
    attach_flags_of_links: u64,
    revision: u64,
}

/// `bpf_attr.info`.
#[repr(C)]
#[derive(Default)]
struct InfoRequest {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// `bpf_link_info` of a tcx link, with the length of the kernel's struct in Linux 6.6.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    attach_type: u32,
    rest: [u64; 6],
}

/// `bpf_attr` of BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct Path64 {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The programs at a tcx hook, in the order in which they run.
///
/// # Errors
/// The interface is gone, CAP_NET_ADMIN is missing, or the kernel is older than 6.6.
pub fn programs(interface: u32, hook: Hook) -> io::Result<Vec<Attached>> {
    let (mut programs, mut links) = ([0u32; MOST_PROGRAMS], [0u32; MOST_PROGRAMS]);
    let mut query = Query {
        interface,
        attach_type: match hook {
            Hook::Ingress => BPF_TCX_INGRESS,
            Hook::Egress => BPF_TCX_EGRESS,
        },
        programs: address(programs.as_mut_ptr()),
        links: address(links.as_mut_ptr()),
        count: 64,
        ..Query::default()
    };
    // SAFETY: both arrays have room for the 64 numbers that `count` permits, and live until the
    // call has returned.
    unsafe { bpf(BPF_PROG_QUERY, &mut query) }?;
    let pairs = programs.into_iter().zip(links).take(query.count as usize);
    Ok(pairs.map(|(program, link)| Attached { program, link }).collect())
}

/// The tcx link that is pinned at a path.
///
/// # Errors
/// Nothing or another object is pinned there.
pub fn pinned_link(path: &Path) -> io::Result<TcxLink> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = Path64 { path: address(name.as_ptr().cast_mut()), ..Path64::default() };
    // SAFETY: the path ends with a zero byte and lives until the call has returned.
    let descriptor = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    // SAFETY: the kernel has just returned this descriptor, and no other code knows it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let mut info = LinkInfo::default();
    let mut request = InfoRequest {
        descriptor: descriptor.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
        info: address(&raw mut info),
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, which lives until the call has
    // returned. An object that is no link is described by another struct of plain numbers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut request) }?;
    if info.kind != LINK_TYPE_TCX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(TcxLink { id: info.id, program: info.program, interface: info.interface })
}

/// The index of an interface in this thread's network namespace.
///
/// # Errors
/// There is no interface of this name.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with a zero byte and lives until the call has returned.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The name of an interface in this thread's network namespace.
///
/// # Errors
/// There is no interface with this index.
pub fn interface_name(index: u32) -> io::Result<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the call may write.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok(name.to_string_lossy().into_owned())
}

/// Whether a directory is in a bpffs.
///
/// # Errors
/// The directory does not exist.
pub fn is_bpffs(directory: &Path) -> io::Result<bool> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: `statfs` is a struct of plain numbers, for which zero is a value.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, the kernel fills `found`, and both live until the
    // call has returned.
    match unsafe { libc::statfs(path.as_ptr(), &raw mut found) } {
        0 => Ok(found.f_type == libc::BPF_FS_MAGIC),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Mounts a bpffs that only its owner can enter (mode 0700).
///
/// # Errors
/// The directory does not exist, or CAP_SYS_ADMIN is missing.
pub fn mount_bpffs(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all four strings end with a zero byte and live until the call has returned.
    let result = unsafe {
        libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), flags, c"mode=0700".as_ptr().cast())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unmounts what is mounted at a directory, also if it is in use.
///
/// # Errors
/// Nothing is mounted there, or CAP_SYS_ADMIN is missing.
pub fn unmount(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte and lives until the call has returned.
    match unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An address as the kernel takes it in `bpf_attr`.
fn address<T>(pointer: *mut T) -> u64 {
    pointer.addr() as u64
}

/// Makes the system call with a part of `bpf_attr`.
///
/// # Safety
/// `T` is the part of `bpf_attr` that the command reads, and each address in it is valid for what
/// the command does with it.
unsafe fn bpf<T>(command: c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the size of `T` at this address; the caller
    // vouches for the addresses inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
