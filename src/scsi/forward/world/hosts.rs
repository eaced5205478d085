//! The hosts of the world: sessions at both nodes, each with a few commands at a time, and what they know.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::{BLOCKS, Common, HOSTS, SlowDevice, data_of, poll, stamp_of};
use crate::scsi::command::{Command, Response, Status};
use crate::scsi::forward::Management;
use crate::scsi::identity::{InitiatorPort, Nexus, NexusId, TargetPort};
use crate::scsi::logical_unit::LogicalUnit;
use crate::scsi::task_set::TaskAttribute;

type Unit = Rc<LogicalUnit<SlowDevice>>;

/// What a session has asked for and waits for.
struct Asked {
    what: What,
    execution: LocalBoxFuture<'static, Option<Response>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Write(u64),
    Read,
    /// PERSISTENT RESERVE OUT.
    Reserve,
    Other,
}

/// A management function, or the end of the session, that is waited for.
struct Ending {
    done: LocalBoxFuture<'static, bool>,
    /// Writes that must not take effect once it is done.
    writes: Vec<u64>,
    why: &'static str,
    ends_session: bool,
}

/// An initiator with one session after the other at one node.
pub(super) struct Host {
    common: Rc<Common>,
    number: u8,
    node: usize,
    session: Option<NexusId>,
    asked: BTreeMap<u64, Asked>,
    ending: Vec<Ending>,
    next_tag: u64,
    /// What was answered, by status.
    pub(super) good: u64,
    pub(super) other: u64,
}

impl Host {
    pub(super) fn new(common: &Rc<Common>, number: u8, node: usize) -> Self {
        Self {
            common: common.clone(),
            number,
            node,
            session: None,
            asked: BTreeMap::new(),
            ending: Vec::new(),
            next_tag: 1,
            good: 0,
            other: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.ending.is_empty()
    }

    /// The key that it registers.
    fn key(&self) -> u64 {
        u64::from(self.number) + 1
    }

    /// Begins something, or does not.
    pub(super) fn act(&mut self, units: &[Unit; 2]) {
        let unit = &units[self.node];
        let Some(session) = self.session else {
            if self.ending.is_empty() && self.asked.is_empty() {
                let isid = [0x80, 0, 0, 0, 0, self.number];
                let initiator = InitiatorPort { name: format!("iqn.2007-10.test:{}", self.number), isid };
                let tag = self.node as u16 + 1;
                let target_port = TargetPort { relative_id: tag, portal_group: tag };
                self.session = Some(unit.attach(Nexus { initiator, target_port }));
            }
            return;
        };
        if self.ending.iter().any(|ending| ending.ends_session) {
            return;
        }
        match self.common.below(40) {
            0 => self.end_session(unit, session),
            1 => self.manage(unit, session, Management::AbortTaskSet),
            2 if self.common.chance(4) => self.manage(unit, session, Management::Reset),
            3 if self.common.chance(4) => self.manage(unit, session, Management::ClearTaskSet),
            4 => {
                let tag = self.asked.keys().next().copied();
                if let Some(tag) = tag {
                    self.manage(unit, session, Management::AbortTask(tag));
                }
            }
            5 => self.reserve(unit, session),
            6..=10 => _ = self.ask(unit, session, What::Other, Command::new(&[0; 6], 0)),
            11..=18 => {
                let block = self.common.below(BLOCKS as usize) as u8;
                let read = Command::new(&[0x08, 0, 0, block, 1, 0], 512);
                self.ask(unit, session, What::Read, read);
            }
            _ if self.asked.len() < 3 => {
                let stamp = u64::from(self.number) << 32 | self.next_tag;
                let block = self.common.below(BLOCKS as usize) as u8;
                let command = Command::with_data(&[0x0a, 0, 0, block, 1, 0], vec![data_of(stamp)]);
                self.ask(unit, session, What::Write(stamp), command);
            }
            _ => {}
        }
    }

    fn ask(&mut self, unit: &Unit, session: NexusId, what: What, command: Command) -> bool {
        let tag = self.next_tag;
        self.next_tag += 1;
        let attribute = match self.common.below(8) {
            0 => TaskAttribute::Ordered,
            1 => TaskAttribute::HeadOfQueue,
            _ => TaskAttribute::Simple,
        };
        let unit = unit.clone();
        let Ok(task) = unit.admit(session, tag, attribute) else { return false };
        let execution = Box::pin(async move { unit.execute(task, command).await });
        self.asked.insert(tag, Asked { what, execution });
        true
    }

    /// REGISTER AND IGNORE, RESERVE (write exclusive, registrants only), PREEMPT AND ABORT of the next host, CLEAR.
    fn reserve(&mut self, unit: &Unit, session: NexusId) {
        let action = [6, 6, 1, 5, 3][self.common.below(5)];
        let mut list = vec![0; 24];
        let victim = (self.key() % HOSTS as u64) + 1;
        let (key, new_key) = match action {
            6 => (0, self.key()),
            5 => (self.key(), victim),
            _ => (self.key(), 0),
        };
        list[0..8].copy_from_slice(&key.to_be_bytes());
        list[8..16].copy_from_slice(&new_key.to_be_bytes());
        let command = Command::with_data(&[0x5f, action, 5, 0, 0, 0, 0, 0, 24, 0], vec![list.into()]);
        self.common.reserving.set(self.common.reserving.get() + 1);
        self.common.medium.borrow_mut().forbidden.clear();
        if !self.ask(unit, session, What::Reserve, command) {
            self.common.reserving.set(self.common.reserving.get() - 1);
        }
    }

    fn writes(&self, tag: Option<u64>) -> Vec<u64> {
        let asked = self.asked.iter().filter(|(one, _)| tag.is_none_or(|tag| tag == **one));
        let stamps = asked.filter_map(|(_, asked)| match asked.what {
            What::Write(stamp) => Some(stamp),
            _ => None,
        });
        stamps.collect()
    }

    fn manage(&mut self, unit: &Unit, session: NexusId, function: Management) {
        let tag = match function {
            Management::AbortTask(tag) => Some(tag),
            _ => None,
        };
        let ending = Ending {
            writes: self.writes(tag),
            done: unit.manage(session, function),
            why: "its abort",
            ends_session: false,
        };
        self.ending.push(ending);
    }

    fn end_session(&mut self, unit: &Unit, session: NexusId) {
        let drain = unit.detach(session);
        let done = Box::pin(async move {
            drain.wait().await;
            true
        });
        let why = "the end of its session";
        self.ending.push(Ending { writes: self.writes(None), done, why, ends_session: true });
    }

    /// Takes what has come to an end.
    pub(super) fn poll(&mut self, units: &[Unit; 2]) {
        let mut ended = Vec::new();
        for (tag, asked) in &mut self.asked {
            if let Some(response) = poll(asked.execution.as_mut()) {
                ended.push((*tag, asked.what, response));
            }
        }
        for (tag, what, response) in ended {
            self.asked.remove(&tag);
            let status = response.as_ref().map(|response| response.status);
            let is_good = status == Some(Status::Good);
            *(if is_good { &mut self.good } else { &mut self.other }) += 1;
            let mut medium = self.common.medium.borrow_mut();
            match what {
                What::Write(stamp) if is_good => {
                    assert!(medium.applied.contains(&stamp), "GOOD for write {stamp}, which took no effect");
                }
                // Answered, it is over; without an answer, what has aborted it says when.
                What::Write(stamp) if response.is_some() => {
                    medium.dead.entry(stamp).or_insert("it was answered");
                }
                What::Read if is_good => {
                    let stamp = stamp_of(&response.expect("GOOD").data_in.concat());
                    assert!(stamp == 0 || medium.applied.contains(&stamp));
                }
                What::Reserve => {
                    self.common.reserving.set(self.common.reserving.get() - 1);
                    let serving = units.iter().find(|unit| unit.has_device());
                    if let Some(serving) = serving.filter(|_| is_good && self.common.reserving.get() == 0) {
                        medium.forbidden = shut_out(serving);
                    }
                }
                _ => {}
            }
        }
        let mut ends_session = false;
        let common = self.common.clone();
        self.ending.retain_mut(|ending| match poll(ending.done.as_mut()) {
            Some(is_done) => {
                let mut medium = common.medium.borrow_mut();
                for stamp in ending.writes.iter().filter(|_| is_done) {
                    medium.dead.entry(*stamp).or_insert(ending.why);
                }
                ends_session |= ending.ends_session;
                false
            }
            None => true,
        });
        if ends_session {
            self.session = None;
        }
    }
}

/// Hosts that may not write, by the reservations in force.
fn shut_out(unit: &Unit) -> BTreeSet<u8> {
    let state = unit.reservations_in_force();
    let registered: BTreeSet<u8> = state.registrations.iter().map(|one| one.isid[5]).collect();
    let is_reserved = state.reservation_type.is_some();
    (0..HOSTS as u8).filter(|number| is_reserved && !registered.contains(number)).collect()
}
