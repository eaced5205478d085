//! Frames of a mirror's stream: a message in pieces, and the queue from which frames are filled.
//!
//! The data of a block is copied once on its way out, into the frame, and never on its way in.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes};
use futures::Stream;
use prost::DecodeError;
use prost::encoding::{
    DecodeContext, WireType, bytes as bytes_field, encode_key, encode_varint, encoded_len_varint, key_len,
    skip_field,
};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use crate::peer::messages::{Hello, MirrorFrame};

/// `MirrorMessage` of `proto/peer.proto`, made of pieces: on the wire they are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorMessage {
    pieces: Vec<Bytes>,
}

impl MirrorMessage {
    /// A message whose encoding is these pieces, one after the other.
    #[must_use]
    pub fn new(pieces: Vec<Bytes>) -> Self {
        Self { pieces }
    }

    /// Its encoding. A message that was received is one piece.
    #[must_use]
    pub fn into_bytes(mut self) -> Bytes {
        match self.pieces.len() {
            0 => Bytes::new(),
            1 => self.pieces.swap_remove(0),
            _ => self.pieces.concat().into(),
        }
    }

    fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

const ENCODED: u32 = 1;

impl prost::Message for MirrorMessage {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        encode_key(ENCODED, WireType::LengthDelimited, buf);
        encode_varint(self.len() as u64, buf);
        self.pieces.iter().for_each(|piece| buf.put_slice(piece));
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != ENCODED {
            return skip_field(wire_type, tag, buf, context);
        }
        let mut encoded = Bytes::new();
        bytes_field::merge(wire_type, &mut encoded, buf, context)?;
        self.pieces = vec![encoded];
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        let length = self.len();
        key_len(ENCODED) + encoded_len_varint(length as u64) + length
    }

    fn clear(&mut self) {
        self.pieces.clear();
    }
}

/// The sending half of a connection's queue, on the thread of the data. Sending never waits.
pub(super) struct Outbox {
    queue: RefCell<Option<mpsc::UnboundedSender<Queued>>>,
    backlog: Arc<Backlog>,
}

/// The half that the transport takes frames from: the hello, then whatever waits, in frames of about
/// [`BATCH_BYTES`].
pub(super) struct Frames {
    hello: Option<Hello>,
    queue: mpsc::UnboundedReceiver<Queued>,
    backlog: Arc<Backlog>,
    end: Option<Status>,
}

enum Queued {
    Message(MirrorMessage),
    End(Status),
}

/// Bytes that wait in the queue.
#[derive(Default)]
struct Backlog {
    bytes: AtomicUsize,
    shrunk: Notify,
}

/// A queue of a connection whose first frame is this hello.
pub(super) fn queue(hello: Hello) -> (Outbox, Frames) {
    let (sender, queue) = mpsc::unbounded_channel();
    let backlog = Arc::new(Backlog::default());
    let outbox = Outbox { queue: RefCell::new(Some(sender)), backlog: backlog.clone() };
    (outbox, Frames { hello: Some(hello), queue, backlog, end: None })
}

impl Outbox {
    /// Queues a message, or loses it when the connection has ended.
    pub(super) fn send(&self, pieces: Vec<Bytes>) {
        let message = MirrorMessage::new(pieces);
        if let Some(queue) = &*self.queue.borrow() {
            self.backlog.bytes.fetch_add(message.len(), Ordering::Relaxed);
            let _ = queue.send(Queued::Message(message));
        }
    }

    /// Ends this direction, behind what was sent. Whoever is called hears the status; a caller's is not sent.
    pub(super) fn end(&self, status: Option<Status>) {
        if let (Some(queue), Some(status)) = (self.queue.take(), status) {
            let _ = queue.send(Queued::End(status));
        }
    }

    /// Complete when so little waits to be sent that more may be asked for.
    pub(super) async fn room(&self) {
        while self.backlog.bytes.load(Ordering::Relaxed) > MOST_BACKLOG_BYTES {
            self.backlog.shrunk.notified().await;
        }
    }
}

impl Frames {
    fn taken(&self, bytes: usize) {
        self.backlog.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.backlog.shrunk.notify_one();
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // Nothing is sent any more, so nobody has to wait until it is.
        self.queue.close();
        self.backlog.bytes.store(0, Ordering::Relaxed);
        self.backlog.shrunk.notify_one();
    }
}

impl Stream for Frames {
    type Item = Result<MirrorFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let frames = self.get_mut();
        if let Some(hello) = frames.hello.take() {
            return Poll::Ready(Some(Ok(MirrorFrame { hello: Some(hello), messages: Vec::new() })));
        }
        if let Some(status) = frames.end.take() {
            frames.queue.close();
            return Poll::Ready(Some(Err(status)));
        }
        let Some(first) = ready!(frames.queue.poll_recv(context)) else { return Poll::Ready(None) };
        let (mut messages, mut bytes, mut next) = (Vec::new(), 0, Some(first));
        while let Some(queued) = next.take() {
            match queued {
                Queued::Message(message) => {
                    bytes += message.len();
                    messages.push(message);
                    if bytes < BATCH_BYTES {
                        next = frames.queue.try_recv().ok();
                    }
                }
                Queued::End(status) => frames.end = Some(status),
            }
        }
        if messages.is_empty() {
            return Poll::Ready(frames.end.take().map(Err));
        }
        frames.taken(bytes);
        Poll::Ready(Some(Ok(MirrorFrame { hello: None, messages })))
    }
}

/// A frame is sent when it has so much, or when nothing else waits: what is on its way can be taken up while the
/// next one is filled.
const BATCH_BYTES: usize = 64 << 10;
/// No further message is taken while more answers than this wait to be sent.
const MOST_BACKLOG_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use prost::Message;

    use super::*;

    fn hello() -> Hello {
        Hello { name: "a".into(), ..Hello::default() }
    }

    #[test]
    fn pieces_travel_as_one_and_are_not_copied_when_they_arrive() {
        let message = MirrorMessage::new(vec![Bytes::from_static(b"head"), Bytes::from(vec![7; 4096])]);
        let empty = MirrorMessage::new(Vec::new());
        let frame = MirrorFrame { hello: None, messages: vec![message.clone(), empty, message] };
        let encoded = Bytes::from(frame.encode_to_vec());
        assert_eq!(encoded.len(), frame.encoded_len());
        let received = MirrorFrame::decode(encoded.clone()).unwrap();
        let lengths: Vec<usize> = received.messages.iter().map(MirrorMessage::len).collect();
        assert_eq!(lengths, [4100, 0, 4100]);
        let within = encoded.as_ptr_range();
        for message in received.messages.into_iter().filter(|message| message.len() > 0) {
            let bytes = message.into_bytes();
            assert!(bytes.starts_with(b"head") && bytes[4..].iter().all(|byte| *byte == 7));
            assert!(within.contains(&bytes.as_ptr()), "a copy");
        }
        assert!(MirrorFrame::decode(encoded.slice(..encoded.len() - 1)).is_err());
    }

    #[test]
    fn what_waits_is_sent_together_up_to_a_size_and_in_order() {
        let (outbox, mut frames) = queue(hello());
        let sent = |number: u8, bytes: usize| outbox.send(vec![Bytes::from(vec![number; bytes])]);
        (0..3).for_each(|number| sent(number, 10));
        sent(3, BATCH_BYTES);
        sent(4, 10);
        outbox.end(Some(Status::invalid_argument("over")));
        sent(5, 10);
        let mut next = || frames.next().now_or_never().unwrap();
        assert_eq!(next().unwrap().unwrap().hello, Some(hello()));
        let mut numbers = |expected: &[u8]| {
            let frame = next().unwrap().unwrap();
            let found: Vec<u8> = frame.messages.into_iter().map(|message| message.into_bytes()[0]).collect();
            assert_eq!(found, expected);
        };
        numbers(&[0, 1, 2, 3]);
        numbers(&[4]);
        assert_eq!(next().unwrap().unwrap_err().message(), "over");
        assert!(next().is_none());
    }

    #[test]
    fn who_has_answered_too_much_waits_until_it_is_sent_or_never_will_be() {
        let (outbox, mut frames) = queue(hello());
        assert!(outbox.room().now_or_never().is_some());
        outbox.send(vec![Bytes::from(vec![0; MOST_BACKLOG_BYTES + 1])]);
        outbox.send(vec![Bytes::from(vec![0; MOST_BACKLOG_BYTES + 1])]);
        for _ in 0..2 {
            assert!(outbox.room().now_or_never().is_none());
            frames.next().now_or_never().unwrap().unwrap().unwrap();
        }
        assert!(outbox.room().now_or_never().is_none());
        drop(frames);
        assert!(outbox.room().now_or_never().is_some());
    }
}
