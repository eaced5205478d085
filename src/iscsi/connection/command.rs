//! SCSI Command: from the PDU to the driver's hands.

use super::Channel;
use super::event::{CloseReason, Command, Event, ProtocolFault};
use super::full_feature::{FullFeature, Meaning, NewCommand, Request};
use super::receive::Destination;
use super::task::{Sequence, Task, TaskFailure, TaskStage, Transfer};
use super::window::Place;
use crate::base::buffer::AlignedBuf;
use crate::base::units::BLOCK_SIZE;
use crate::iscsi::budget::Charge;
use crate::iscsi::pdu::{
    BasicHeader, InitiatorTaskTag, PduError, RejectReason, ScsiCommand as CommandPdu, TargetTransferTag,
    TaskAttribute,
};

impl FullFeature {
    /// Looks at a command's headers and finds a place for its immediate data.
    pub(super) fn begin_command(
        &mut self,
        channel: &Channel,
        header: BasicHeader,
        command: CommandPdu,
        data_length: u32,
    ) -> (Destination, Meaning) {
        if !command.is_immediate && self.place(command.command_sn) == Place::Outside {
            return (Destination::Discard, Meaning::Ignored);
        }
        if let Some(reason) = self.refusal_of(&command) {
            return (Destination::Discard, Meaning::Refused(header, reason));
        }
        let command_sn = command.command_sn;
        let has_unsolicited = command.writes && !command.is_final;
        let failure = self.check_unsolicited(&command, data_length);
        let mut task = self.new_task(channel, command);
        task.failure = failure;
        if data_length > task.transfer.wanted {
            // Only where the whole budget is smaller than a first burst.
            task.failure.get_or_insert(TaskFailure::TaskSetFull);
        }
        let mut destination = Destination::Discard;
        if task.failure.is_none() && task.transfer.wanted > 0 {
            match self.take_memory(task.transfer.wanted) {
                Some((buffer, charge)) => {
                    task.charge = Some(charge);
                    destination = Destination::Transfer { buffer, offset: 0 };
                }
                None if data_length > 0 || has_unsolicited => task.failure = Some(TaskFailure::TaskSetFull),
                // It can wait: nothing comes before it is asked for.
                None => {}
            }
        }
        let new = NewCommand { header, command_sn, task, data_length, has_unsolicited };
        (destination, Meaning::Command(Box::new(new)))
    }

    /// A command with its immediate data is in.
    pub(super) fn finish_command(
        &mut self,
        channel: &mut Channel,
        new: NewCommand,
        destination: Destination,
        is_intact: bool,
    ) {
        let NewCommand { header, command_sn, mut task, data_length, has_unsolicited } = new;
        if !is_intact {
            // The command is lost with its data (section 7.8); at level 0 the session recovers.
            self.reject(channel, &header, RejectReason::DataDigestError);
            return channel.close(CloseReason::Protocol(ProtocolFault::Pdu(PduError::DataDigest)));
        }
        if let Destination::Transfer { buffer, .. } = destination {
            task.buffer = Some(buffer);
            task.transfer.solicited = data_length;
        }
        if has_unsolicited {
            let end = task.expected_out.min(self.parameters.first_burst_length).min(task.transfer.wanted);
            let tag = TargetTransferTag::RESERVED;
            task.transfer.sequences.push(Sequence { tag, offset: data_length, end, next_data_sn: 0 });
        }
        let is_immediate = task.is_immediate;
        self.retired.retain(|tag| *tag != task.initiator_task_tag.0);
        if task.attribute == TaskAttribute::Ordered {
            self.undelivered_ordered += 1;
        }
        self.immediate_tasks += u32::from(is_immediate);
        let slot = self.tasks.insert(task);
        if is_immediate {
            return self.start(channel, slot);
        }
        match self.place(command_sn) {
            Place::Next => {
                self.window.advance();
                self.start(channel, slot);
                self.dispatch_early(channel);
            }
            Place::Early => self.early.push((command_sn, Request::Command(slot))),
            Place::Outside => self.drop_task(slot),
        }
    }

    /// The command's turn has come.
    pub(super) fn start(&mut self, channel: &mut Channel, slot: u32) {
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        if let Some(task) = self.tasks.get_mut(slot) {
            task.arrival = arrival;
            task.stage = TaskStage::Collecting;
        }
        self.progress(channel, slot);
    }

    /// Does the next step of a command that is collecting its data.
    pub(super) fn progress(&mut self, channel: &mut Channel, slot: u32) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        if !matches!(task.stage, TaskStage::Collecting | TaskStage::AwaitingMemory) {
            return;
        }
        if let Some(failure) = task.failure {
            // The response comes after the last data that was asked for (section 7.8).
            if task.transfer.sequences.is_empty() {
                self.fail(channel, slot, failure);
            }
            return;
        }
        if task.transfer.is_complete() {
            return self.hand_up_or_wait(channel, slot);
        }
        let Transfer { wanted, .. } = task.transfer;
        if task.buffer.is_none() {
            let Some((buffer, charge)) = self.take_memory(wanted) else {
                return self.await_memory(slot);
            };
            if let Some(task) = self.tasks.get_mut(slot) {
                (task.buffer, task.charge) = (Some(buffer), Some(charge));
                task.stage = TaskStage::Collecting;
            }
        }
        self.solicit(channel, slot);
    }

    /// Memory may be there again.
    pub(super) fn handle_memory(&mut self, channel: &mut Channel) {
        while let Some(slot) = self.memory_line.pop_front() {
            self.progress(channel, slot);
            if self.memory_line.back() == Some(&slot) {
                // Still short: it keeps its place at the front.
                self.memory_line.pop_back();
                self.memory_line.push_front(slot);
                return;
            }
        }
        self.basis.budget.stop_waiting();
        self.open_window();
    }

    /// A command in whatever stage ends without a response.
    pub(super) fn abort_or_drop(&mut self, slot: u32) {
        match self.tasks.get(slot).map(|task| task.stage) {
            Some(TaskStage::Delivered) => self.tasks.abort(slot),
            Some(TaskStage::Aborted) | None => {}
            Some(_) => self.drop_task(slot),
        }
    }

    /// A command that the driver has not been handed ends without a response.
    pub(super) fn drop_task(&mut self, slot: u32) {
        let Some(task) = self.remove_task(slot) else { return };
        self.memory_line.retain(|waiting| *waiting != slot);
        if self.memory_line.is_empty() {
            self.basis.budget.stop_waiting();
        }
        for (_, early) in &mut self.early {
            // Its CmdSN has come all the same.
            if matches!(early, Request::Command(early) if *early == slot) {
                *early = Request::Plug;
            }
        }
        if !task.transfer.sequences.is_empty() {
            self.retire(task.initiator_task_tag);
        }
    }

    /// Hands up what a command that left has held back.
    pub(super) fn release_held(&mut self, channel: &mut Channel) {
        if self.tasks.iter().all(|(_, task)| task.stage != TaskStage::Held) {
            return;
        }
        let mut held = self.tasks.slots_where(|task| task.stage == TaskStage::Held);
        held.sort_by_key(|slot| self.tasks.get(*slot).map(|task| task.arrival));
        for slot in held {
            if self.may_be_delivered(slot) {
                self.deliver(channel, slot);
            }
        }
    }

    /// Takes a command out of its slot and keeps the counts.
    pub(super) fn remove_task(&mut self, slot: u32) -> Option<Task> {
        let task = self.tasks.remove(slot)?;
        let was_delivered = matches!(task.stage, TaskStage::Delivered | TaskStage::Aborted);
        self.delivered -= u32::from(was_delivered);
        self.immediate_tasks -= u32::from(task.is_immediate);
        if !was_delivered && task.attribute == TaskAttribute::Ordered {
            self.undelivered_ordered -= 1;
        }
        Some(task)
    }

    fn refusal_of(&self, command: &CommandPdu) -> Option<RejectReason> {
        if command.initiator_task_tag == InitiatorTaskTag::RESERVED {
            return Some(RejectReason::InvalidPduField);
        }
        if self.tasks.find(command.initiator_task_tag).is_some() {
            return Some(RejectReason::TaskInProgress);
        }
        let is_above_limit = command.is_immediate && self.immediate_tasks >= IMMEDIATE_LIMIT;
        is_above_limit.then_some(RejectReason::ImmediateCommandReject)
    }

    /// Whether the unsolicited data that comes with or right after a command was agreed on.
    fn check_unsolicited(&self, command: &CommandPdu, data_length: u32) -> Option<TaskFailure> {
        let parameters = &self.parameters;
        let has_immediate_data = data_length > 0;
        if has_immediate_data && !(command.writes && parameters.immediate_data) {
            return Some(TaskFailure::UnexpectedUnsolicitedData);
        }
        if command.writes && !command.is_final && parameters.initial_r2t {
            return Some(TaskFailure::UnexpectedUnsolicitedData);
        }
        let limit = command.expected_data_transfer_length.min(parameters.first_burst_length);
        let is_too_long = data_length > limit;
        is_too_long.then_some(TaskFailure::IncorrectAmountOfData)
    }

    fn new_task(&self, channel: &Channel, command: CommandPdu) -> Task {
        let expected = command.expected_data_transfer_length;
        let expected_out = if command.writes { expected } else { 0 };
        let expected_in = match (command.reads, command.writes) {
            (true, true) => command.bidirectional_read_length.unwrap_or(0),
            (true, false) => expected,
            (false, _) => 0,
        };
        Task {
            stage: TaskStage::Early,
            initiator_task_tag: command.initiator_task_tag,
            lun: command.lun,
            cdb: Some(command.cdb),
            attribute: command.attribute,
            is_immediate: command.is_immediate,
            reads: command.reads,
            writes: command.writes,
            expected_out,
            expected_in,
            arrival: 0,
            buffer: None,
            charge: None,
            failure: None,
            transfer: Transfer {
                wanted: expected_out.min(self.basis.transfer_length),
                solicited: 0,
                next_r2t_sn: 0,
                sequences: Vec::new(),
                touched: channel.now,
            },
        }
    }

    /// A buffer for `length` bytes of write data, if the budget allows.
    fn take_memory(&self, length: u32) -> Option<(AlignedBuf, Charge)> {
        let charge = self.basis.budget.try_charge(footprint(length))?;
        Some((self.basis.pool.get(length as usize), charge))
    }

    fn await_memory(&mut self, slot: u32) {
        if let Some(task) = self.tasks.get_mut(slot) {
            task.stage = TaskStage::AwaitingMemory;
            self.memory_line.push_back(slot);
            self.basis.budget.wait();
        }
    }

    /// All data is here: makes sure that there is room for what the command returns, and that its
    /// turn has come.
    fn hand_up_or_wait(&mut self, channel: &mut Channel, slot: u32) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        let returned = task.expected_in.min(self.basis.transfer_length);
        if returned > 0 && task.charge.is_none() {
            match self.basis.budget.try_charge(footprint(returned)) {
                Some(charge) => task.charge = Some(charge),
                None => return self.await_memory(slot),
            }
        }
        task.stage = TaskStage::Held;
        if self.undelivered_ordered == 0 || self.may_be_delivered(slot) {
            self.deliver(channel, slot);
        }
    }

    /// SAM's rule for the ordered attribute: such a command goes after all older ones and before
    /// all younger ones of its logical unit. The logical unit keeps it further on.
    fn may_be_delivered(&self, slot: u32) -> bool {
        let Some(task) = self.tasks.get(slot) else { return false };
        let holds_back = |older: &Task| {
            !matches!(older.stage, TaskStage::Early | TaskStage::Delivered | TaskStage::Aborted)
                && older.arrival < task.arrival
                && older.lun == task.lun
                && (older.attribute == TaskAttribute::Ordered || task.attribute == TaskAttribute::Ordered)
        };
        let is_head = task.attribute == TaskAttribute::HeadOfQueue;
        is_head || !self.tasks.iter().any(|(_, older)| holds_back(older))
    }

    fn deliver(&mut self, channel: &mut Channel, slot: u32) {
        let id = self.tasks.id_of(slot);
        let Some(task) = self.tasks.get_mut(slot) else { return };
        let Some(cdb) = task.cdb.take() else { return };
        task.stage = TaskStage::Delivered;
        self.delivered += 1;
        let was_ordered = task.attribute == TaskAttribute::Ordered;
        let data_out = task.buffer.take().map(AlignedBuf::freeze);
        channel.events.push_back(Event::Command(Command {
            task: id,
            lun: task.lun,
            cdb,
            attribute: task.attribute,
            reads: task.reads,
            writes: task.writes,
            data_out: data_out.into_iter().collect(),
            expected_out: task.expected_out,
            expected_in: task.expected_in,
        }));
        self.undelivered_ordered -= u32::from(was_ordered);
        if was_ordered || self.undelivered_ordered > 0 {
            self.release_held(channel);
        }
    }
}

impl Transfer {
    /// Whether every byte that is wanted has come.
    fn is_complete(&self) -> bool {
        self.sequences.is_empty() && self.solicited >= self.wanted
    }
}

/// Memory that a buffer of `length` bytes takes.
fn footprint(length: u32) -> u64 {
    u64::from(length).max(BLOCK_SIZE as u64).next_power_of_two()
}

/// Immediate commands at a time.
const IMMEDIATE_LIMIT: u32 = 8;
