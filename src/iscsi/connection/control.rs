//! Pings, text, logout and asynchronous messages in full feature phase.

use super::Channel;
use super::event::{CloseReason, Event};
use super::full_feature::{FullFeature, Ping};
use super::{after, discovery};
use crate::iscsi::pdu::{
    AsynchronousEvent, AsynchronousMessage, InitiatorTaskTag, LogoutReason, LogoutRequest, LogoutResponse,
    LogoutResult, NopIn, NopOut, RejectReason, TargetTransferTag, TextRequest, TextResponse,
};
use crate::iscsi::text::TextAssembler;

/// A text exchange under way: one at a time.
#[derive(Debug)]
pub(super) struct TextExchange {
    initiator_task_tag: InitiatorTaskTag,
    tag: TargetTransferTag,
    /// Text of a request that is continued.
    request: TextAssembler,
    /// Text of the response that has not been sent.
    response: Vec<u8>,
}

impl FullFeature {
    /// NOP-Out: an answer to our ping, or a ping to be answered (RFC 7143 section 11.18).
    pub(super) fn handle_nop_out(&mut self, channel: &mut Channel, nop: &NopOut, mut data: Vec<u8>) {
        if nop.initiator_task_tag == InitiatorTaskTag::RESERVED {
            if self.ping.as_ref().is_some_and(|ping| ping.tag == nop.target_transfer_tag) {
                self.ping = None;
            }
            return;
        }
        data.truncate(self.parameters.send_data_segment_length as usize);
        let answer = NopIn {
            lun: nop.lun,
            initiator_task_tag: nop.initiator_task_tag,
            target_transfer_tag: TargetTransferTag::RESERVED,
            serials: self.response_serials(channel),
        };
        let digests = self.parameters.digests;
        channel.transmitter.push_unbudgeted(answer.emit(), Self::payload(data), digests);
    }

    /// Asks the initiator for a sign of life.
    pub(super) fn send_ping(&mut self, channel: &mut Channel) {
        let tag = self.new_transfer_tag();
        self.ping = Some(Ping { tag, sent: channel.now, receptions: channel.receptions });
        let ping = NopIn {
            lun: [0; 8],
            initiator_task_tag: InitiatorTaskTag::RESERVED,
            target_transfer_tag: tag,
            serials: self.serials(channel),
        };
        channel.transmitter.push_pdu(ping.emit(), &[], self.parameters.digests);
    }

    /// Text Request (section 11.10): discovery, in one or several parts.
    pub(super) fn handle_text(&mut self, channel: &mut Channel, request: &TextRequest, data: &[u8]) {
        let is_new = request.target_transfer_tag == TargetTransferTag::RESERVED;
        let mut exchange = match self.text.take() {
            Some(exchange) if !is_new && exchange.is_continued_by(request) => exchange,
            _ if is_new => TextExchange {
                initiator_task_tag: request.initiator_task_tag,
                tag: self.new_transfer_tag(),
                request: TextAssembler::default(),
                response: Vec::new(),
            },
            _ => return self.reject_text(channel, request, RejectReason::InvalidPduField),
        };
        if !exchange.response.is_empty() {
            // The initiator asks for the rest of the response; it has nothing to say itself.
            if !data.is_empty() {
                return self.reject_text(channel, request, RejectReason::ProtocolError);
            }
            return self.send_text(channel, request, exchange);
        }
        if exchange.request.append(data).is_err() {
            return self.reject_text(channel, request, RejectReason::ProtocolError);
        }
        if !request.continues {
            let text = exchange.request.take();
            match discovery::answer(self, &text) {
                Ok(response) => exchange.response = response,
                Err(_) => return self.reject_text(channel, request, RejectReason::ProtocolError),
            }
        }
        self.send_text(channel, request, exchange);
    }

    /// Logout Request (section 11.14).
    pub(super) fn handle_logout(&mut self, channel: &mut Channel, request: LogoutRequest) {
        let refusal = match request.reason {
            LogoutReason::CloseSession => None,
            LogoutReason::CloseConnection if request.connection_id == self.session.connection_id => None,
            LogoutReason::CloseConnection => Some(LogoutResult::ConnectionNotFound),
            LogoutReason::RemoveForRecovery => Some(LogoutResult::RecoveryNotSupported),
        };
        if let Some(result) = refusal {
            return self.send_logout_response(channel, request.initiator_task_tag, result);
        }
        for slot in self.tasks.slots_where(|task| !task.is_with_driver()) {
            self.drop_task(slot);
        }
        self.logout = Some(request);
        if !self.is_drained() {
            channel.events.push_back(Event::AbortTasks);
        }
        self.finish_logout_when_drained(channel);
    }

    pub(super) fn finish_logout_when_drained(&mut self, channel: &mut Channel) {
        if !self.is_drained() || channel.closing.is_some() {
            return;
        }
        if let Some(request) = &self.logout {
            let tag = request.initiator_task_tag;
            self.send_logout_response(channel, tag, LogoutResult::Closed);
            channel.close(CloseReason::Logout);
        }
    }

    /// Asks the initiator to log out (section 11.9.1, event 1).
    pub(super) fn begin_async_logout(&mut self, channel: &mut Channel) {
        if self.logout_deadline.is_some() || channel.closing.is_some() {
            return;
        }
        let time = self.basis.settings.logout_timeout;
        self.logout_deadline = Some(after(channel.now, time));
        let within_s = u16::try_from(time.as_secs().max(1)).unwrap_or(u16::MAX);
        self.send_asynchronous(channel, AsynchronousEvent::LogoutRequested { within_s }, [0; 8], &[]);
    }

    /// Says that the session is about to be dropped (event 3).
    pub(super) fn announce_drop(&mut self, channel: &mut Channel) {
        if channel.closing.is_some() {
            return;
        }
        let event = AsynchronousEvent::SessionDropped {
            time_to_wait_s: self.parameters.time_to_wait_s,
            time_to_retain_s: 0,
        };
        self.send_asynchronous(channel, event, [0; 8], &[]);
    }

    /// Sends a SCSI event (event 0).
    pub(super) fn send_scsi_event(&mut self, channel: &mut Channel, lun: [u8; 8], sense: &[u8]) {
        if self.is_discovery() || channel.closing.is_some() {
            return;
        }
        let sense = &sense[..sense.len().min(MAXIMUM_EVENT_SENSE)];
        let length = sense.len() as u16;
        let data = [&length.to_be_bytes()[..], sense].concat();
        self.send_asynchronous(channel, AsynchronousEvent::Scsi, lun, &data);
    }

    fn send_asynchronous(
        &mut self,
        channel: &mut Channel,
        event: AsynchronousEvent,
        lun: [u8; 8],
        data: &[u8],
    ) {
        let message = AsynchronousMessage { event, lun, serials: self.response_serials(channel) };
        channel.transmitter.push_pdu(message.emit(), data, self.parameters.digests);
    }

    fn send_logout_response(&mut self, channel: &mut Channel, tag: InitiatorTaskTag, result: LogoutResult) {
        let response = LogoutResponse {
            result,
            initiator_task_tag: tag,
            serials: self.response_serials(channel),
            // Nothing is retained at error recovery level 0, so there is nothing to wait for.
            time_to_wait_s: 0,
            time_to_retain_s: 0,
        };
        channel.transmitter.push_pdu(response.emit(), &[], self.parameters.digests);
    }

    /// Sends the next part of an exchange's response; with a part left over, or while the initiator
    /// has not finished, the exchange goes on.
    fn send_text(&mut self, channel: &mut Channel, request: &TextRequest, mut exchange: TextExchange) {
        let limit = (self.parameters.send_data_segment_length as usize).min(TEXT_SEGMENT_LIMIT);
        let rest = exchange.response.split_off(exchange.response.len().min(limit));
        let part = std::mem::replace(&mut exchange.response, rest);
        let continues = !exchange.response.is_empty();
        let is_final = request.is_final && !continues;
        let response = TextResponse {
            is_final,
            continues,
            lun: request.lun,
            initiator_task_tag: request.initiator_task_tag,
            target_transfer_tag: if is_final { TargetTransferTag::RESERVED } else { exchange.tag },
            serials: self.response_serials(channel),
        };
        let digests = self.parameters.digests;
        channel.transmitter.push_unbudgeted(response.emit(), Self::payload(part), digests);
        self.text = (!is_final).then_some(exchange);
    }

    fn reject_text(&mut self, channel: &mut Channel, request: &TextRequest, reason: RejectReason) {
        self.reject(channel, &request.emit(), reason);
    }
}

impl TextExchange {
    fn is_continued_by(&self, request: &TextRequest) -> bool {
        self.tag == request.target_transfer_tag && self.initiator_task_tag == request.initiator_task_tag
    }
}

/// Longest data segment of a text response.
const TEXT_SEGMENT_LIMIT: usize = 256 << 10;

/// Sense data of an event: as SPC-4 limits it.
const MAXIMUM_EVENT_SENSE: usize = 252;
