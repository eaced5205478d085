//! Bytes on their way: what was received and not yet understood, what is to be sent and not yet taken.
//!
//! Both sides hold many PDUs at a time. Small parts are gathered, large payloads are sent from where
//! they are. The receive buffer is as large as was asked for and never grows; it must hold the
//! longest PDU.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::super::pdu::{Digests, PduError, RawPdu};

/// Received bytes, a run inside a buffer of fixed size.
#[derive(Debug)]
pub struct ReceiveBuffer {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    /// A buffer of `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { buffer: vec![0; size].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where the next bytes go to. Never empty when the buffer holds the longest PDU and all whole ones are taken.
    pub fn space(&mut self) -> &mut [u8] {
        let room = self.buffer.len() - self.end;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if room < self.buffer.len() / 4 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that the first `count` bytes of the space are filled.
    ///
    /// # Panics
    /// When there was less space.
    pub fn fill(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.end);
        self.end += count;
    }

    /// The first PDU, when it is all there. It stays until [`Self::consume`] takes it.
    ///
    /// # Errors
    /// As [`RawPdu::split`].
    pub fn front(&self, digests: Digests, limit: usize) -> Result<Option<RawPdu<'_>>, PduError> {
        RawPdu::split(&self.buffer[self.start..self.end], digests, limit)
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
    }
}

/// Bytes to be sent: gathered small parts and large payloads, in order.
#[derive(Debug, Default)]
pub struct TransmitQueue {
    parts: VecDeque<Part>,
    spare: Vec<u8>,
}

#[derive(Debug)]
enum Part {
    Gathered { bytes: Vec<u8>, sent: usize },
    Shared(Bytes),
}

impl TransmitQueue {
    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The buffer that small parts are appended to; the caller appends at least one byte.
    pub fn gather(&mut self) -> &mut Vec<u8> {
        let fits =
            matches!(self.parts.back(), Some(Part::Gathered { bytes, .. }) if bytes.len() < GATHER_LIMIT);
        if !fits {
            let bytes = std::mem::take(&mut self.spare);
            self.parts.push_back(Part::Gathered { bytes, sent: 0 });
        }
        match self.parts.back_mut() {
            Some(Part::Gathered { bytes, .. }) => bytes,
            _ => unreachable!("a gathering part was just made sure of"),
        }
    }

    /// Appends payload.
    pub fn push(&mut self, payload: Bytes) {
        if payload.len() <= COPY_LIMIT {
            self.gather().extend_from_slice(&payload);
        } else {
            self.parts.push_back(Part::Shared(payload));
        }
    }

    /// Adds what is to be sent to `slices`, up to their limit for one system call.
    pub fn slices<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        slices.extend(self.parts.iter().take(SLICES_LIMIT).map(|part| match part {
            Part::Gathered { bytes, sent } => IoSlice::new(&bytes[*sent..]),
            Part::Shared(bytes) => IoSlice::new(bytes),
        }));
    }

    /// Says that the first `count` bytes are sent.
    ///
    /// # Panics
    /// When there were fewer.
    pub fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let part = self.parts.front_mut().expect("no more is sent than there was");
            let length = match part {
                Part::Gathered { bytes, sent } => bytes.len() - *sent,
                Part::Shared(bytes) => bytes.len(),
            };
            if count < length {
                match part {
                    Part::Gathered { sent, .. } => *sent += count,
                    Part::Shared(bytes) => bytes.advance(count),
                }
                return;
            }
            count -= length;
            if let Some(Part::Gathered { mut bytes, .. }) = self.parts.pop_front() {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }
}

/// Bytes up to which parts are gathered in one buffer.
const GATHER_LIMIT: usize = 256 << 10;
/// Payload up to which a copy is cheaper than a slice of its own.
const COPY_LIMIT: usize = 16 << 10;
/// Slices in one system call; Linux takes 1024.
const SLICES_LIMIT: usize = 512;
