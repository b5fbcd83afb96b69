//! Buffers that the kernel fills by itself: a ring of descriptions that both sides know, and the memory behind it.
//!
//! A buffer belongs to the kernel until a completion names it; then a [`Filled`] stands for it, the only key to its bytes,
//! until [`Buffers::recycle`] takes it back. Whoever reads need not hold the [`super::Ring`].
//!
//! Invariant: memory and descriptions live as long as the ring they are registered with, which holds them too.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::UnsafeCell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// What the kernel and we share. Never moved or freed before the ring is gone.
pub(super) struct Shared {
    /// `count` entries; the first one's last field is the tail of the ring.
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    memory: Box<[UnsafeCell<u8>]>,
}

/// A pool of provided buffers.
pub struct Buffers {
    shared: Rc<Shared>,
    group: u16,
    count: u16,
    size: usize,
    tail: u16,
}

/// A buffer that the kernel has filled.
#[derive(Debug)]
pub struct Filled {
    group: u16,
    id: u16,
    length: usize,
}

impl Shared {
    fn new(count: u16, size: usize) -> Self {
        // io_uring_register_buf_ring(3): the descriptions begin on a page.
        let layout =
            Layout::array::<BufRingEntry>(usize::from(count)).and_then(|layout| layout.align_to(4096));
        let layout = layout.expect("a few kilobytes");
        // SAFETY: the layout is not empty (`Buffers::new` is called with constants), and zero is a value of an entry.
        let entries = unsafe { alloc_zeroed(layout) }.cast::<BufRingEntry>();
        let entries = NonNull::new(entries).unwrap_or_else(|| handle_alloc_error(layout));
        let memory = vec![0u8; usize::from(count) * size].into_boxed_slice();
        // SAFETY: an UnsafeCell<u8> has the size, alignment and values of a u8.
        let memory = unsafe { Box::from_raw(Box::into_raw(memory) as *mut [UnsafeCell<u8>]) };
        Self { entries, layout, memory }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` by this layout, and freed here only.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}

impl Buffers {
    /// `count` (a power of two) buffers of `size` bytes, registered with `io` as `group`. The ring must keep what
    /// [`Buffers::shared`] gives.
    pub(super) fn new(io: &IoUring, group: u16, count: u16, size: usize) -> io::Result<Self> {
        let shared = Rc::new(Shared::new(count, size));
        let address = shared.entries.as_ptr() as u64;
        // SAFETY: the descriptions are `count` entries, page-aligned, and are kept by the ring until it is gone.
        unsafe { io.submitter().register_buf_ring_with_flags(address, count, group, 0) }?;
        let mut buffers = Self { shared, group, count, size, tail: 0 };
        for id in 0..count {
            buffers.recycle(Filled { group, id, length: 0 });
        }
        Ok(buffers)
    }

    pub(super) fn shared(&self) -> Rc<Shared> {
        self.shared.clone()
    }

    /// The key to a buffer that a completion of `group` named.
    pub(super) fn filled(group: u16, id: u16, length: usize) -> Filled {
        Filled { group, id, length }
    }

    /// What the kernel wrote.
    #[must_use]
    pub fn bytes(&self, filled: &Filled) -> &[u8] {
        assert_eq!(filled.group, self.group, "a buffer of this pool");
        let cells = &self.shared.memory[usize::from(filled.id) * self.size..][..filled.length.min(self.size)];
        // SAFETY: `filled` exists only between the completion that named the buffer and its return, in which time the
        // kernel does not write to it; and its return borrows `self` mutably, so that no slice is left by then.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len()) }
    }

    /// Gives a buffer back to the kernel.
    pub fn recycle(&mut self, filled: Filled) {
        assert_eq!(filled.group, self.group, "a buffer of this pool");
        let place = usize::from(self.tail & (self.count - 1));
        let cell = self.shared.memory[usize::from(filled.id) * self.size..].as_ptr();
        // SAFETY: `place` is below `count`, so the entry is one of ours; the kernel reads it only after the tail has passed
        // it. The tail overlays the last field of the first entry, which the setters below do not touch.
        unsafe {
            let entry = &mut *self.shared.entries.as_ptr().add(place);
            entry.set_addr(cell as u64);
            entry.set_len(u32::try_from(self.size).unwrap_or(u32::MAX));
            entry.set_bid(filled.id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the first entry is initialised and ours; its tail is two aligned bytes that only we write.
        let tail = unsafe { &*BufRingEntry::tail(self.shared.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffers({} of {} bytes)", self.count, self.size)
    }
}
