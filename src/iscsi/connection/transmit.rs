//! What is to be sent: headers gathered in one buffer, payload by reference.
//!
//! Guarantees the order in which things were pushed. Payload is never copied; many PDUs go out with
//! one vectored send. Memory of sent headers is reused.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use crate::base::checksum::Crc32c;
use crate::iscsi::budget::Charge;
use crate::iscsi::pdu::framing::{append_headers, append_pdu, append_trailer};
use crate::iscsi::pdu::{BasicHeader, Digests};

/// The send queue of one connection.
#[derive(Debug, Default)]
pub(super) struct Transmitter {
    /// Bytes of headers, trailers and small data, from `gathered_sent` on still to be sent.
    gathered: Vec<u8>,
    gathered_sent: usize,
    queue: VecDeque<Chunk>,
    /// Bytes to be sent that no budget bounds.
    unbudgeted_bytes: usize,
}

#[derive(Debug)]
enum Chunk {
    /// So many bytes of `gathered`.
    Gathered(usize),
    /// Payload that belongs to a command and its charge.
    Payload(Bytes),
    /// Payload that nothing bounds but [`BACKLOG_LIMIT`].
    Unbudgeted(Bytes),
    /// Everything before it has been sent: the charge ends.
    Release { _charge: Charge },
}

impl Transmitter {
    /// Appends a PDU whose data is copied: for small data only.
    pub(super) fn push_pdu(&mut self, header: BasicHeader, data: &[u8], digests: Digests) {
        let before = self.gathered.len();
        append_pdu(&mut self.gathered, header, &[], data, digests);
        self.note_gathered(self.gathered.len() - before);
    }

    /// Appends a PDU whose data are the pieces of `data`, `length` bytes together.
    pub(super) fn push_data(
        &mut self,
        header: BasicHeader,
        data: impl Iterator<Item = Bytes>,
        length: usize,
        digests: Digests,
    ) {
        let before = self.gathered.len();
        append_headers(&mut self.gathered, header, &[], length, digests);
        self.note_gathered(self.gathered.len() - before);
        let mut digest = Crc32c::of(&[]);
        for piece in data {
            if digests.data {
                digest = digest.append(&piece);
            }
            self.queue.push_back(Chunk::Payload(piece));
        }
        let before = self.gathered.len();
        append_trailer(&mut self.gathered, digest, length, digests);
        self.note_gathered(self.gathered.len() - before);
    }

    /// Appends a PDU with data of one piece that belongs to no command.
    pub(super) fn push_unbudgeted(&mut self, header: BasicHeader, data: Bytes, digests: Digests) {
        let before = self.gathered.len();
        append_headers(&mut self.gathered, header, &[], data.len(), digests);
        self.note_gathered(self.gathered.len() - before);
        let digest = if digests.data { Crc32c::of(&data) } else { Crc32c(0) };
        let length = data.len();
        if length > 0 {
            self.unbudgeted_bytes += length;
            self.queue.push_back(Chunk::Unbudgeted(data));
        }
        let before = self.gathered.len();
        append_trailer(&mut self.gathered, digest, length, digests);
        self.note_gathered(self.gathered.len() - before);
    }

    /// Ends `charge` when everything pushed so far has been sent.
    pub(super) fn push_release(&mut self, charge: Charge) {
        self.queue.push_back(Chunk::Release { _charge: charge });
    }

    /// Fills `slices` with what comes next and gives their number.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut gathered = &self.gathered[self.gathered_sent..];
        let mut count = 0;
        for chunk in &self.queue {
            let bytes = match chunk {
                Chunk::Gathered(length) => {
                    let (bytes, rest) = gathered.split_at(*length);
                    gathered = rest;
                    bytes
                }
                Chunk::Payload(bytes) | Chunk::Unbudgeted(bytes) => bytes,
                Chunk::Release { .. } => continue,
            };
            let Some(slice) = slices.get_mut(count) else { break };
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// The first `count` bytes have been sent.
    ///
    /// # Panics
    /// When there was less to send.
    pub(super) fn advance(&mut self, mut count: usize) {
        while let Some(front) = self.queue.front_mut() {
            let length = match front {
                Chunk::Gathered(length) => *length,
                Chunk::Payload(bytes) | Chunk::Unbudgeted(bytes) => bytes.len(),
                Chunk::Release { .. } => 0,
            };
            let sent = length.min(count);
            count -= sent;
            match front {
                Chunk::Gathered(length) => {
                    *length -= sent;
                    self.gathered_sent += sent;
                    self.unbudgeted_bytes -= sent;
                }
                Chunk::Payload(bytes) => *bytes = bytes.slice(sent..),
                Chunk::Unbudgeted(bytes) => {
                    *bytes = bytes.slice(sent..);
                    self.unbudgeted_bytes -= sent;
                }
                Chunk::Release { .. } => {}
            }
            if sent < length {
                break;
            }
            self.queue.pop_front();
        }
        assert_eq!(count, 0, "the driver reported more bytes sent than there were");
        self.reuse_gathered();
    }

    /// Forgets everything: there is nobody to send it to.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether so much waits to be sent that nothing should be done that adds to it.
    pub(super) fn is_backlogged(&self) -> bool {
        self.unbudgeted_bytes > BACKLOG_LIMIT
    }

    /// Gives memory back that an idle connection does not need.
    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.clear();
        }
    }

    fn note_gathered(&mut self, length: usize) {
        if length == 0 {
            return;
        }
        self.unbudgeted_bytes += length;
        match self.queue.back_mut() {
            Some(Chunk::Gathered(last)) => *last += length,
            _ => self.queue.push_back(Chunk::Gathered(length)),
        }
    }

    fn reuse_gathered(&mut self) {
        if self.gathered_sent == self.gathered.len() {
            self.gathered.clear();
            self.gathered_sent = 0;
        } else if self.gathered_sent > COMPACT_ABOVE {
            self.gathered.drain(..self.gathered_sent);
            self.gathered_sent = 0;
        }
    }
}

/// Unbudgeted bytes above which the connection takes nothing more in.
const BACKLOG_LIMIT: usize = 256 << 10;

/// Sent bytes of a buffer that never runs empty before it is compacted.
const COMPACT_ABOVE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::pdu::{InitiatorTaskTag, NopIn, RawPdu, ResponseSerials, TargetTransferTag};

    fn header() -> BasicHeader {
        let nop = NopIn {
            lun: [0; 8],
            initiator_task_tag: InitiatorTaskTag(1),
            target_transfer_tag: TargetTransferTag::RESERVED,
            serials: ResponseSerials::default(),
        };
        nop.emit()
    }

    /// Sends everything in steps of `step` bytes over at most `count` slices a time.
    fn send(transmitter: &mut Transmitter, step: usize, count: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while !transmitter.is_empty() {
            let mut slices = vec![IoSlice::new(&[]); count];
            let filled = transmitter.slices(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            let now = bytes.len().min(step);
            sent.extend_from_slice(&bytes[..now]);
            transmitter.advance(now);
        }
        sent
    }

    #[test]
    fn pdus_arrive_whole_however_they_are_cut() {
        for digests in [Digests::default(), Digests { header: true, data: true }] {
            let mut expected = Vec::new();
            for step in [1, 3, 47, 48, 100, 10_000] {
                let mut transmitter = Transmitter::default();
                transmitter.push_pdu(header(), b"abc", digests);
                transmitter.push_pdu(header(), b"", digests);
                let pieces = [Bytes::from_static(b"defgh"), Bytes::from_static(b"ij")];
                transmitter.push_data(header(), pieces.iter().cloned(), 7, digests);
                transmitter.push_unbudgeted(header(), Bytes::from_static(b"klm"), digests);
                let sent = send(&mut transmitter, step, 3);
                if expected.is_empty() {
                    expected = sent.clone();
                }
                assert_eq!(sent, expected);
                let mut rest = &sent[..];
                for data in [&b"abc"[..], b"", b"defghij", b"klm"] {
                    let pdu = RawPdu::split(rest, digests, 100).unwrap().unwrap();
                    assert_eq!(pdu.data, data);
                    rest = &rest[pdu.length..];
                }
                assert!(rest.is_empty());
                assert_eq!(transmitter.unbudgeted_bytes, 0);
                assert!(transmitter.gathered.is_empty());
            }
        }
    }

    #[test]
    fn adjacent_headers_share_one_slice() {
        let mut transmitter = Transmitter::default();
        (0..10).for_each(|_| transmitter.push_pdu(header(), &[], Digests::default()));
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(transmitter.slices(&mut slices), 1);
        assert_eq!(slices[0].len(), 480);
    }
}
