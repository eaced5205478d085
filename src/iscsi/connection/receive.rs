//! From received bytes to PDUs: a lent ring for headers and small data, large payload straight into
//! the buffer of its transfer.
//!
//! Guarantees: a PDU's data segment is never longer than announced limits, small payload is copied
//! once and large payload not at all, digests are checked, and a connection that waits for nothing
//! holds no buffer. What a PDU means, and where its data goes, its user decides when the headers are
//! in.

use crate::base::buffer::{AlignedBuf, BufferPool};
use crate::base::checksum::Crc32c;
use crate::iscsi::pdu::framing::{check_data, check_headers};
use crate::iscsi::pdu::header::BASIC_HEADER_LENGTH;
use crate::iscsi::pdu::{BasicHeader, Digests, InitiatorPdu, PduError, PduLengths};

/// The receiving side of one connection; `T` is what its user remembers of a PDU between headers
/// and end.
#[derive(Debug)]
pub(super) struct Receiver<T> {
    pool: BufferPool,
    ring_length: usize,
    /// There only while something is in it or about to be read into it.
    ring: Option<AlignedBuf>,
    /// The bytes of the ring that nobody has looked at: `start..end`.
    start: usize,
    end: usize,
    incoming: Option<Incoming<T>>,
    /// The last payload bypassed the ring, so the next probably will: reads ask for little more
    /// than its headers, because what comes with them has to be copied.
    is_streaming: bool,
}

/// Where the data segment of a PDU goes.
#[derive(Debug)]
pub(super) enum Destination {
    /// Nowhere: its PDU is refused or ignored.
    Discard,
    /// Into a vector of its own: text, ping data.
    Text(Vec<u8>),
    /// Into the buffer of a transfer, at an offset.
    Transfer {
        /// Buffer of the whole transfer.
        buffer: AlignedBuf,
        /// Where this segment belongs.
        offset: usize,
    },
}

/// A PDU whose headers are in and whose data is on its way.
#[derive(Debug)]
struct Incoming<T> {
    lengths: PduLengths,
    received: usize,
    destination: Destination,
    memory: T,
}

/// What the bytes have come to.
#[derive(Debug)]
pub(super) enum Received<T> {
    /// Headers: answer with [`Receiver::begin`].
    Headers { header: BasicHeader, lengths: PduLengths, pdu: Result<InitiatorPdu, PduError> },
    /// The end of a PDU. Not intact: its data digest was wrong.
    Whole { memory: T, destination: Destination, is_intact: bool },
}

impl<T> Receiver<T> {
    pub(super) fn new(pool: BufferPool, ring_length: usize) -> Self {
        Self { pool, ring_length, ring: None, start: 0, end: 0, incoming: None, is_streaming: false }
    }

    /// Where the next bytes go; empty when no more can be taken in.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        if self.is_direct() {
            // Asked twice, because a borrow can't be returned on one path and taken again on another.
            return self.incoming.as_mut().map_or(&mut [], Incoming::remaining);
        }
        let ring = self.ring.get_or_insert_with(|| self.pool.get(self.ring_length));
        if self.start > 0 {
            ring.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let limit = if self.is_streaming { self.end + STREAMING_READ } else { ring.len() };
        let limit = limit.min(ring.len());
        &mut ring[self.end..limit]
    }

    /// `count` bytes have been written to the start of [`Self::buffer`].
    pub(super) fn filled(&mut self, count: usize) {
        if self.is_direct() {
            let Some(incoming) = &mut self.incoming else { return };
            assert!(count <= incoming.lengths.data - incoming.received, "more bytes than the buffer has");
            incoming.received += count;
            self.is_streaming = true;
        } else if let Some(ring) = &self.ring {
            assert!(count <= ring.len() - self.end, "more bytes than the buffer has");
            self.end += count;
        }
    }

    /// Looks at what is there; `None` when more bytes are needed.
    pub(super) fn poll(
        &mut self,
        digests: Digests,
        maximum_data_length: usize,
    ) -> Result<Option<Received<T>>, PduError> {
        match self.incoming.take() {
            None => self.poll_headers(digests, maximum_data_length),
            Some(incoming) => self.poll_data(incoming),
        }
    }

    /// Goes on with the PDU whose headers were just polled.
    pub(super) fn begin(&mut self, lengths: PduLengths, destination: Destination, memory: T) {
        debug_assert!(self.incoming.is_none());
        self.incoming = Some(Incoming { lengths, received: 0, destination, memory });
    }

    /// Gives the ring back unless something is in it.
    pub(super) fn rest(&mut self) {
        if self.start == self.end {
            self.ring = None;
            self.start = 0;
            self.end = 0;
        }
    }

    /// Forgets everything; the connection has ended.
    pub(super) fn stop(&mut self) {
        self.ring = None;
        self.start = 0;
        self.end = 0;
        self.incoming = None;
    }

    /// Changes the length of the ring, from when it is next empty.
    pub(super) fn set_ring_length(&mut self, length: usize) {
        self.ring_length = length;
    }

    /// Whether the next bytes go straight into a transfer's buffer.
    fn is_direct(&self) -> bool {
        let is_empty = self.start == self.end;
        self.incoming.as_ref().is_some_and(|incoming| {
            is_empty
                && incoming.lengths.data - incoming.received >= DIRECT_ABOVE
                && matches!(incoming.destination, Destination::Transfer { .. })
        })
    }

    fn unread(&self) -> &[u8] {
        self.ring.as_ref().map_or(&[], |ring| &ring[self.start..self.end])
    }

    fn poll_headers(
        &mut self,
        digests: Digests,
        maximum_data_length: usize,
    ) -> Result<Option<Received<T>>, PduError> {
        let unread = self.unread();
        let Some(header) = BasicHeader::from_prefix(unread) else { return Ok(None) };
        let lengths = PduLengths::of(&header, digests);
        let Some(headers) = unread.get(..lengths.headers()) else { return Ok(None) };
        check_headers(headers, digests)?;
        if lengths.data > maximum_data_length {
            return Err(PduError::DataLength { length: lengths.data, limit: maximum_data_length });
        }
        let additional = &headers[BASIC_HEADER_LENGTH..BASIC_HEADER_LENGTH + lengths.additional];
        let pdu = InitiatorPdu::parse(&header, additional);
        self.start += lengths.headers();
        Ok(Some(Received::Headers { header, lengths, pdu }))
    }

    fn poll_data(&mut self, mut incoming: Incoming<T>) -> Result<Option<Received<T>>, PduError> {
        let lengths = incoming.lengths;
        let unread = self.unread();
        let copied = unread.len().min(lengths.data - incoming.received);
        incoming.take(&unread[..copied]);
        let is_complete = incoming.received == lengths.data;
        let trailer = unread[copied..].get(..lengths.trailer()).filter(|_| is_complete);
        let is_intact = trailer.map(|trailer| check_data(incoming.digest(), trailer, &lengths).is_ok());
        let Some(is_intact) = is_intact else {
            self.start += copied;
            self.incoming = Some(incoming);
            return Ok(None);
        };
        self.start += copied + lengths.trailer();
        self.is_streaming &= lengths.data >= DIRECT_ABOVE;
        let Incoming { destination, memory, .. } = incoming;
        // Discarded data can't be checked, and needs no check.
        let is_intact = is_intact || matches!(destination, Destination::Discard);
        Ok(Some(Received::Whole { memory, destination, is_intact }))
    }
}

impl<T> Incoming<T> {
    /// The part of a transfer's buffer that is still to be received.
    fn remaining(&mut self) -> &mut [u8] {
        match &mut self.destination {
            Destination::Transfer { buffer, offset } => {
                &mut buffer[*offset + self.received..*offset + self.lengths.data]
            }
            Destination::Discard | Destination::Text(_) => &mut [],
        }
    }

    /// Takes data from the ring.
    fn take(&mut self, data: &[u8]) {
        match &mut self.destination {
            Destination::Discard => {}
            Destination::Text(text) => text.extend_from_slice(data),
            Destination::Transfer { buffer, offset } => {
                let start = *offset + self.received;
                buffer[start..start + data.len()].copy_from_slice(data);
            }
        }
        self.received += data.len();
    }

    /// Digest of the data segment, where a digest is in use.
    fn digest(&self) -> Crc32c {
        if self.lengths.data_digest == 0 {
            return Crc32c(0);
        }
        match &self.destination {
            Destination::Discard => Crc32c(0),
            Destination::Text(text) => Crc32c::of(text),
            Destination::Transfer { buffer, offset } => {
                Crc32c::of(&buffer[*offset..*offset + self.lengths.data])
            }
        }
    }
}

/// Bytes of a read that is expected to bring little more than headers.
const STREAMING_READ: usize = 1024;

/// Payload still to come from which on it bypasses the ring, in bytes. Below it, one read of the
/// ring that brings the next headers along is cheaper than the copy.
const DIRECT_ABOVE: usize = 8192;
