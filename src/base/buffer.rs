//! Page-aligned buffers for direct input and output, reused while hot.
//!
//! An [`AlignedBuf`] is owned by one operation at a time and is writable; [`AlignedBuf::freeze`]
//! turns it into [`Bytes`], shared and immutable, which keep the alignment of their origin when they
//! are sliced at block boundaries. Memory goes back to its pool when the last holder drops it. How
//! much may be in use at a time is the business of whoever admits work (the iSCSI budgets); a pool
//! bounds only what it keeps for reuse.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::units::BLOCK_SIZE;

/// A writable buffer whose address and capacity are multiples of [`BLOCK_SIZE`].
pub struct AlignedBuf {
    region: Region,
    length: usize,
}

impl AlignedBuf {
    /// A buffer of `length` bytes outside any pool, filled with zeros.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        let mut buffer = Self { region: Region::allocate(capacity_for(length), None), length };
        buffer.fill(0);
        buffer
    }

    /// A copy of `data` outside any pool.
    #[must_use]
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buffer = Self::zeroed(data.len());
        buffer.copy_from_slice(data);
        buffer
    }

    /// Shortens the buffer to its first `length` bytes; longer lengths change nothing.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Ends writing: the buffer becomes shared and immutable.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the region holds at least `length` initialised bytes and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.region.address.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.region.address.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.length)
    }
}

/// Whether `data` can be handed to a direct disk write as it is.
#[must_use]
pub fn is_block_aligned(data: &[u8]) -> bool {
    data.as_ptr().addr().is_multiple_of(BLOCK_SIZE) && data.len().is_multiple_of(BLOCK_SIZE)
}

/// Keeps released buffers for reuse, up to a limit of bytes, in power-of-two size classes.
#[derive(Clone)]
pub struct BufferPool {
    // A lock because a buffer may be dropped on another thread (a mirror stream holds a slice of
    // it); on the data path it is never contended.
    shelves: Arc<Mutex<Shelves>>,
}

impl BufferPool {
    /// A pool that keeps at most `keep_bytes` of released memory.
    #[must_use]
    pub fn new(keep_bytes: usize) -> Self {
        let shelves = Shelves { classes: Default::default(), kept_bytes: 0, keep_bytes };
        Self { shelves: Arc::new(Mutex::new(shelves)) }
    }

    /// A buffer of `length` bytes. Its contents are unspecified (zeros, or what it last held), so
    /// the caller overwrites it before it shows it to anyone.
    #[must_use]
    pub fn get(&self, length: usize) -> AlignedBuf {
        let capacity = capacity_for(length);
        let kept = lock(&self.shelves).take(capacity);
        let region = match kept {
            Some(mut region) => {
                region.home = Some(self.shelves.clone());
                region
            }
            None => Region::allocate(capacity, Some(self.shelves.clone())),
        };
        AlignedBuf { region, length }
    }

    /// A pooled copy of `data`.
    #[must_use]
    pub fn copy_of(&self, data: &[u8]) -> AlignedBuf {
        let mut buffer = self.get(data.len());
        buffer.copy_from_slice(data);
        buffer
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BufferPool({} bytes kept)", lock(&self.shelves).kept_bytes)
    }
}

/// Released regions by size class: class `n` holds regions of `BLOCK_SIZE << n` bytes.
struct Shelves {
    classes: [Vec<Region>; CLASSES],
    kept_bytes: usize,
    keep_bytes: usize,
}

impl Shelves {
    fn take(&mut self, capacity: usize) -> Option<Region> {
        let region = self.classes.get_mut(class_of(capacity))?.pop()?;
        self.kept_bytes -= capacity;
        Some(region)
    }
}

/// One allocation. Its memory is initialised from the start, so a recycled one is safe to read.
struct Region {
    address: NonNull<u8>,
    capacity: usize,
    /// Where the memory goes when it is released; none while it lies on a shelf.
    home: Option<Arc<Mutex<Shelves>>>,
}

// SAFETY: a region is plain memory owned through one handle; nothing in it is tied to a thread.
unsafe impl Send for Region {}
// SAFETY: shared access gives only `&[u8]`.
unsafe impl Sync for Region {}

impl Region {
    fn allocate(capacity: usize, home: Option<Arc<Mutex<Shelves>>>) -> Self {
        let layout = layout_of(capacity);
        // SAFETY: the layout's size is at least BLOCK_SIZE, never zero.
        let raw = unsafe { alloc(layout) };
        let Some(address) = NonNull::new(raw) else { handle_alloc_error(layout) };
        // SAFETY: `address` points at `capacity` bytes that were just allocated.
        unsafe { address.write_bytes(0, capacity) };
        Self { address, capacity, home }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let mut shelves = lock(&home);
            let fits = shelves.kept_bytes + self.capacity <= shelves.keep_bytes;
            if fits && class_of(self.capacity) < CLASSES {
                shelves.kept_bytes += self.capacity;
                let region = Self { address: self.address, capacity: self.capacity, home: None };
                shelves.classes[class_of(self.capacity)].push(region);
                return;
            }
        }
        // SAFETY: `address` came from `alloc` with this same layout and is released only here: a
        // region put on a shelf above has returned before this line.
        unsafe { dealloc(self.address.as_ptr(), layout_of(self.capacity)) };
    }
}

/// Largest size class kept: 4 KiB << 12 = 16 MiB.
const CLASSES: usize = 13;

fn capacity_for(length: usize) -> usize {
    length.max(BLOCK_SIZE).next_power_of_two()
}

fn class_of(capacity: usize) -> usize {
    (capacity / BLOCK_SIZE).trailing_zeros() as usize
}

fn layout_of(capacity: usize) -> Layout {
    match Layout::from_size_align(capacity, BLOCK_SIZE) {
        Ok(layout) => layout,
        Err(_) => panic!("buffer of {capacity} bytes exceeds the address space"),
    }
}

fn lock(shelves: &Mutex<Shelves>) -> std::sync::MutexGuard<'_, Shelves> {
    // The shelves are consistent between any two statements, so a panic elsewhere spoils nothing.
    shelves.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let pool = BufferPool::new(1 << 20);
        let first = pool.get(5000);
        let address = first.as_ptr();
        assert!(address.addr().is_multiple_of(BLOCK_SIZE));
        assert_eq!(first.len(), 5000);
        let shared = first.freeze();
        let slice = shared.slice(4096..);
        drop(shared);
        assert_ne!(pool.get(8192).as_ptr(), address, "still held by a slice");
        drop(slice);
        assert_eq!(pool.get(8192).as_ptr(), address);
    }

    #[test]
    fn a_pool_keeps_no_more_than_its_limit() {
        let pool = BufferPool::new(8192);
        let held: Vec<_> = (0..4).map(|_| pool.get(4096)).collect();
        drop(held);
        assert_eq!(lock(&pool.shelves).kept_bytes, 8192);
    }

    #[test]
    fn outlives_its_pool() {
        let pool = BufferPool::new(1 << 20);
        let buffer = pool.copy_of(b"kept");
        drop(pool);
        assert_eq!(&buffer.freeze()[..], b"kept");
    }
}
