//! The commands of a connection between their arrival and their response.

use crate::base::buffer::AlignedBuf;
use crate::base::runtime::Instant;
use crate::iscsi::budget::Charge;
use crate::iscsi::pdu::{Cdb, InitiatorTaskTag, TargetTransferTag, TaskAttribute};

use super::event::TaskId;

/// One command.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) stage: TaskStage,
    pub(super) initiator_task_tag: InitiatorTaskTag,
    pub(super) lun: [u8; 8],
    /// Taken out when it is handed up.
    pub(super) cdb: Option<Cdb>,
    pub(super) attribute: TaskAttribute,
    pub(super) is_immediate: bool,
    pub(super) reads: bool,
    pub(super) writes: bool,
    pub(super) expected_out: u32,
    pub(super) expected_in: u32,
    /// Number in the order of delivery; set when its CmdSN's turn has come.
    pub(super) arrival: u64,
    /// Memory of the data written, from when the budget has granted it until it is handed up.
    pub(super) buffer: Option<AlignedBuf>,
    pub(super) charge: Option<Charge>,
    /// Set when the command must end without being executed.
    pub(super) failure: Option<TaskFailure>,
    pub(super) transfer: Transfer,
}

impl Task {
    /// Whether the driver holds it, for its response or after its abortion.
    pub(super) fn is_with_driver(&self) -> bool {
        matches!(self.stage, TaskStage::Delivered | TaskStage::Aborted)
    }
}

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskStage {
    /// Behind a gap in CmdSN.
    Early,
    /// Its data is on the way.
    Collecting,
    /// The budget has no memory for its data now.
    AwaitingMemory,
    /// Complete, behind a command that must be delivered before it.
    Held,
    /// In the driver's hands.
    Delivered,
    /// In the driver's hands, but nobody waits for its response any more.
    Aborted,
}

/// The write data of a command.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Bytes to receive in all.
    pub(super) wanted: u32,
    /// Bytes received or asked for, from the start.
    pub(super) solicited: u32,
    /// R2TSN of the next R2T.
    pub(super) next_r2t_sn: u32,
    /// Sequences under way: the unsolicited one, or those of R2Ts.
    pub(super) sequences: Vec<Sequence>,
    /// When something last came.
    pub(super) touched: Instant,
}

/// One sequence of Data-Out PDUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    /// Reserved for unsolicited data.
    pub(super) tag: TargetTransferTag,
    /// Where the next PDU must begin.
    pub(super) offset: u32,
    /// Where the sequence ends at the latest.
    pub(super) end: u32,
    /// DataSN of the next PDU.
    pub(super) next_data_sn: u32,
}

/// Why a command ends without being executed (the conditions of RFC 7143 section 11.4.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskFailure {
    /// Unsolicited data that was not agreed on.
    UnexpectedUnsolicitedData,
    /// More or less data than announced, or at the wrong offset.
    IncorrectAmountOfData,
    /// A Data-Out PDU was lost or damaged.
    ProtocolServiceCrc,
    /// No memory for the unsolicited data that came.
    TaskSetFull,
}

impl TaskFailure {
    /// SCSI status and sense data (fixed format, SPC-4 section 4.5.3): ABORTED COMMAND with the
    /// codes of RFC 7143.
    pub(super) fn status_and_sense(self) -> (u8, Vec<u8>) {
        let (code, qualifier) = match self {
            Self::UnexpectedUnsolicitedData => (0x0c, 0x0c),
            Self::IncorrectAmountOfData => (0x0c, 0x0d),
            Self::ProtocolServiceCrc => (0x47, 0x05),
            Self::TaskSetFull => return (TASK_SET_FULL, Vec::new()),
        };
        let sense = [0x70, 0, ABORTED_COMMAND, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0];
        (CHECK_CONDITION, sense.to_vec())
    }
}

/// All commands of a connection, found by slot or by initiator task tag.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    slots: Vec<Slot>,
    /// Tag in use by each slot, reserved for a free or aborted one. Apart from the slots, so that a
    /// search touches little memory.
    tags: Vec<u32>,
    free: Vec<u32>,
    next_generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    task: Option<Task>,
}

impl Tasks {
    /// Takes a command in and gives its slot.
    pub(super) fn insert(&mut self, task: Task) -> u32 {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let tag = task.initiator_task_tag.0;
        let entry = Slot { generation, task: Some(task) };
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = entry;
            self.tags[slot as usize] = tag;
            return slot;
        }
        self.slots.push(entry);
        self.tags.push(tag);
        // The window and the limit of immediate commands keep it in the low thousands.
        (self.slots.len() - 1) as u32
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Task> {
        let task = self.slots.get_mut(slot as usize)?.task.take()?;
        self.tags[slot as usize] = InitiatorTaskTag::RESERVED.0;
        self.free.push(slot);
        Some(task)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Task> {
        self.slots.get(slot as usize)?.task.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Task> {
        self.slots.get_mut(slot as usize)?.task.as_mut()
    }

    /// The slot that `id` names, while it is that command's.
    pub(super) fn slot_of(&self, id: TaskId) -> Option<u32> {
        let slot = self.slots.get(id.slot as usize)?;
        (slot.generation == id.generation && slot.task.is_some()).then_some(id.slot)
    }

    pub(super) fn id_of(&self, slot: u32) -> TaskId {
        TaskId { slot, generation: self.slots[slot as usize].generation }
    }

    /// The slot of the command with this tag, aborted ones aside.
    pub(super) fn find(&self, tag: InitiatorTaskTag) -> Option<u32> {
        if tag == InitiatorTaskTag::RESERVED {
            return None;
        }
        self.tags.iter().position(|used| *used == tag.0).map(|slot| slot as u32)
    }

    /// Makes a delivered command one whose response nobody waits for. Its tag is free
    /// again; its memory stays charged until the driver lets go of it.
    pub(super) fn abort(&mut self, slot: u32) {
        if let Some(task) = self.get_mut(slot) {
            task.stage = TaskStage::Aborted;
            self.tags[slot as usize] = InitiatorTaskTag::RESERVED.0;
        }
    }

    /// Slots in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Task)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| Some((slot as u32, entry.task.as_ref()?)))
    }

    /// Slots whose command satisfies `is_meant`.
    pub(super) fn slots_where(&self, is_meant: impl Fn(&Task) -> bool) -> Vec<u32> {
        self.iter().filter(|(_, task)| is_meant(task)).map(|(slot, _)| slot).collect()
    }

    /// Commands in slots.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Gives memory back when there is no command.
    pub(super) fn shrink(&mut self) {
        if self.len() == 0 {
            *self = Self { next_generation: self.next_generation, ..Self::default() };
        }
    }
}

const CHECK_CONDITION: u8 = 0x02;
const TASK_SET_FULL: u8 = 0x28;
const ABORTED_COMMAND: u8 = 0x0b;
