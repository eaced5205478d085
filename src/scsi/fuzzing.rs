//! Entry points for fuzzing: bytes from an initiator into a logical unit over a device that holds
//! nothing. The fuzz targets are thin wrappers around these functions, and the tests replay the corpora
//! through them.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::asymmetric_access::{AccessAuthority, ActivationFailed};
use super::cdb::Cdb;
use super::command::Command;
use super::copy::NoOthers;
use super::identity::{Identity, InitiatorPort, Nexus, NexusId, TargetPort};
use super::logical_unit::{LogicalUnit, Services};
use super::reservation::{PersistedReservations, Volatile};
use super::space::{PoolSpace, Space};
use super::target;
use super::task_set::TaskAttribute;
use crate::base::runtime::{Instant, LocalBoxFuture, Runtime};
use crate::volume::device::{AllocationRun, BlockDevice, CompareOutcome, DeviceError, DeviceGeometry};

/// Executes a sequence of commands: each is 16 bytes of CDB, two bytes of data-out length, the data.
pub fn execute_commands(mut bytes: &[u8]) {
    let world = World::new();
    while let Some((cdb, rest)) = bytes.split_at_checked(Cdb::BYTES) {
        let Some((length, rest)) = rest.split_at_checked(2) else { break };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]])).min(rest.len());
        let (data, rest) = rest.split_at(length);
        world.execute(cdb, data);
        bytes = rest;
    }
}

/// Executes one of the commands that have parameter lists, chosen by the first byte, with the rest as
/// its parameter list.
pub fn parse_parameter_list(bytes: &[u8]) {
    let Some((choice, list)) = bytes.split_first() else { return };
    let list = &list[..list.len().min(usize::from(u16::MAX))];
    let length = u32::try_from(list.len()).expect("at most 65535").to_be_bytes();
    let [_, _, high, low] = length;
    let mut cdb = [0; Cdb::BYTES];
    match choice % 13 {
        0 => (cdb[0], cdb[7], cdb[8]) = (0x42, high, low), // UNMAP
        1 => (cdb[0], cdb[1], cdb[4]) = (0x15, 0x10, low), // MODE SELECT (6)
        2 => (cdb[0], cdb[1], cdb[7], cdb[8]) = (0x55, 0x10, high, low), // MODE SELECT (10)
        3 => (cdb[0], cdb[1], cdb[7], cdb[8]) = (0x48, 0x81, high, low), // SANITIZE, OVERWRITE
        // EXTENDED COPY
        4 => {
            cdb[0] = 0x83;
            cdb[10..14].copy_from_slice(&length);
        }
        // PERSISTENT RESERVE OUT, each service action
        action => {
            (cdb[0], cdb[1], cdb[2]) = (0x5f, action - 5, 0x05);
            cdb[5..9].copy_from_slice(&length);
        }
    }
    let world = World::new();
    world.execute(&cdb, list);
    world.execute(&cdb, list);
}

struct Plenty;

impl PoolSpace for Plenty {
    fn space(&self) -> Space {
        Space { capacity_bytes: 1 << 40, used_bytes: 0, volume_used_bytes: 0, threshold_bytes: 0 }
    }
}

struct World {
    unit: Rc<LogicalUnit<Blank>>,
    runtime: Rc<Background>,
    nexus: NexusId,
}

impl World {
    fn new() -> Self {
        let runtime = Rc::new(Background::default());
        let port = TargetPort { relative_id: 1, portal_group: 1 };
        let identity = Identity {
            volume: "fuzz".into(),
            uuid: [1; 16],
            target_name: "iqn.2026-11.io.gemel:fuzz:fuzz".into(),
            target_ports: vec![port],
            revision: *b"0000",
            physical_block_bytes: 4096,
            non_rotating: true,
        };
        // A node of two, so that SET TARGET PORT GROUPS is there.
        let services = Services {
            runtime: runtime.clone(),
            reservations: Rc::new(Volatile),
            copies: Rc::new(NoOthers),
            space: Rc::new(Plenty),
            access: Rc::new(Settled),
        };
        let unit = LogicalUnit::new(identity, Blank, services, &PersistedReservations::default())
            .expect("the default is valid");
        let initiator = InitiatorPort { name: "iqn.2026-11.io.gemel:fuzz".into(), isid: [0; 6] };
        let nexus = unit.attach(Nexus { initiator, target_port: port });
        let world = Self { unit, runtime, nexus };
        world.execute(&[0; 6], &[]); // takes the unit attention
        world
    }

    fn execute(&self, cdb: &[u8], data: &[u8]) {
        let command = Command::with_data(cdb, vec![Bytes::copy_from_slice(data)]);
        let command = Command { expected_in: 1 << 16, ..command };
        let _ = target::answer_missing(&command);
        let Ok(task) = self.unit.admit(self.nexus, 0, TaskAttribute::Simple) else { return };
        let mut execution = pin!(self.unit.execute(task, command));
        let mut context = Context::from_waker(Waker::noop());
        while execution.as_mut().poll(&mut context).is_pending() {
            self.runtime.poll();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A background task holds its unit, which holds the runtime.
        drop(self.runtime.tasks.take());
    }
}

/// Runs background tasks beside the command that waits for them; time does not pass.
#[derive(Default)]
struct Background {
    tasks: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
}

impl Background {
    fn poll(&self) {
        let mut tasks = self.tasks.take();
        tasks.retain_mut(|task| task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        self.tasks.borrow_mut().extend(tasks);
    }
}

impl Runtime for Background {
    fn now(&self) -> Instant {
        Instant::default()
    }

    fn sleep(&self, _: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        self.tasks.borrow_mut().push(task);
    }

    fn random(&self) -> u64 {
        0
    }
}

/// Moves the unit as it is asked to, with nothing behind it.
struct Settled;

impl AccessAuthority for Settled {
    fn is_local(&self, _: u16) -> bool {
        true
    }

    fn may_serve(&self) -> bool {
        true
    }

    fn is_movable(&self) -> bool {
        true
    }

    fn activate(&self, _: u16) -> LocalBoxFuture<'_, Result<(), ActivationFailed>> {
        Box::pin(async { Ok(()) })
    }
}

/// A small device that forgets what is written and reads as zeros.
struct Blank;

impl BlockDevice for Blank {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry { logical_block_bytes: 512, block_count: 65536 }
    }

    async fn read(&self, _: u64, count: u64) -> Result<Vec<Bytes>, DeviceError> {
        let length = usize::try_from(count * 512).map_err(|_| DeviceError::Offline)?;
        Ok(vec![Bytes::from(vec![0; length])])
    }

    async fn write(&self, _: u64, _: Vec<Bytes>) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn write_same(&self, _: u64, _: u64, _: Bytes) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn compare_and_write(
        &self,
        _: u64,
        compare: Bytes,
        _: Bytes,
    ) -> Result<CompareOutcome, DeviceError> {
        let difference = compare.iter().position(|byte| *byte != 0);
        Ok(difference
            .map_or(CompareOutcome::Written, |offset| CompareOutcome::Miscompare { offset: offset as u64 }))
    }

    async fn unmap(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn allocation(
        &self,
        address: u64,
        count: u64,
        _: usize,
    ) -> Result<Vec<AllocationRun>, DeviceError> {
        Ok(vec![AllocationRun { address, count, mapped: false }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(folder).unwrap();
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn the_command_corpus_replays() {
        let inputs = corpus("cdb");
        assert!(!inputs.is_empty());
        inputs.iter().for_each(|input| execute_commands(input));
    }

    #[test]
    fn the_parameter_list_corpus_replays() {
        let inputs = corpus("parameter_list");
        assert!(!inputs.is_empty());
        for input in inputs {
            for end in 0..=input.len() {
                parse_parameter_list(&input[..end]);
            }
        }
    }
}
