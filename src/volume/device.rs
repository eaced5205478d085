//! What SCSI asks of a volume: a thin block device in logical blocks of 512 or 4096 bytes.
//!
//! Every method completes when its effect is durable (write-through). Addresses and counts are in
//! logical blocks; the caller has checked that the range lies inside the device, since only it can
//! name the right sense code.

use bytes::Bytes;

/// A thin block device with atomic compare-and-write.
#[allow(async_fn_in_trait)] // single-threaded by design: no Send bound is wanted
pub trait BlockDevice {
    /// Size and sector size now; a resize changes it.
    fn geometry(&self) -> DeviceGeometry;
    /// Reads `count` logical blocks from `address` on. The pieces' lengths add up to the whole.
    async fn read(&self, address: u64, count: u64) -> Result<Vec<Bytes>, DeviceError>;
    /// Writes `data`, whose length is a multiple of the logical block size, from `address` on.
    async fn write(&self, address: u64, data: Vec<Bytes>) -> Result<(), DeviceError>;
    /// Writes the one logical block `pattern` to each of `count` blocks from `address` on. A failure
    /// may leave a first part of the range written.
    async fn write_same(&self, address: u64, count: u64, pattern: Bytes) -> Result<(), DeviceError>;
    /// Atomically compares the blocks from `address` on with `compare` and, when they are equal,
    /// writes `data` there. Both have the same length.
    async fn compare_and_write(
        &self,
        address: u64,
        compare: Bytes,
        data: Bytes,
    ) -> Result<CompareOutcome, DeviceError>;
    /// Unmaps `count` blocks from `address` on: they read as zeros afterwards, also where the range
    /// does not fill whole 4 KiB blocks.
    async fn unmap(&self, address: u64, count: u64) -> Result<(), DeviceError>;
    /// Waits until all completed writes are on stable media.
    async fn flush(&self) -> Result<(), DeviceError>;
    /// The provisioning state from `address` on, as runs that cover at most `count` blocks and at
    /// most `limit` runs.
    async fn allocation(
        &self,
        address: u64,
        count: u64,
        limit: usize,
    ) -> Result<Vec<AllocationRun>, DeviceError>;
}

/// Size of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGeometry {
    /// Bytes in a logical block: 512 or 4096. The physical block is 4096 in both cases.
    pub logical_block_bytes: u32,
    /// Logical blocks in the device.
    pub block_count: u64,
}

impl DeviceGeometry {
    /// Of a device of so many bytes, which are whole logical blocks.
    #[must_use]
    pub fn of_bytes(size_bytes: u64, logical_block_bytes: u32) -> Self {
        Self { logical_block_bytes, block_count: size_bytes / u64::from(logical_block_bytes) }
    }
}

/// Result of [`BlockDevice::compare_and_write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOutcome {
    /// The blocks were equal and have been written.
    Written,
    /// They differ, first at this byte offset from the start of the compared range. Nothing was written.
    Miscompare {
        /// Byte offset of the first difference.
        offset: u64,
    },
}

/// Consecutive logical blocks of one provisioning state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationRun {
    /// First block.
    pub address: u64,
    /// Number of blocks.
    pub count: u64,
    /// Whether the blocks hold data.
    pub mapped: bool,
}

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The pool has no space for new blocks; nothing was written.
    #[error("the pool is out of space")]
    OutOfSpace,
    /// Data that was stored can't be given back: neither the disks nor their parity hold it.
    #[error("unrecoverable data at logical block {address}")]
    Medium {
        /// The first logical block concerned.
        address: u64,
    },
    /// The pool is offline; the host may try again.
    #[error("the pool is offline")]
    Offline,
    /// The range reaches beyond the end: the device shrank after the caller had looked.
    #[error("beyond the end of the volume")]
    OutOfRange,
    /// Another node may serve the volume now. What the operation was to do may have been done, or not.
    #[error("the volume is not served here any more")]
    NotServing,
    /// The device was deleted or its server is stopping.
    #[error("the volume is gone")]
    Gone,
}
