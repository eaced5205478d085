//! SANITIZE (SBC-3 section 5.23): BLOCK ERASE, OVERWRITE and EXIT FAILURE MODE.
//!
//! The work goes on by itself, whatever becomes of the command, its nexus or the task set; until it
//! ends every other command is refused. Where the medium is a log, an overwritten block's earlier
//! contents stay on the disks until cleaning reuses their segment: what is promised is that no command
//! gives them back.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};

use super::cdb::Cdb;
use super::command::{Failure, Outcome, Reply, joined, total_length};
use super::execution::Context;
use super::limits;
use super::logical_unit::LogicalUnit;
use super::operation::Access;
use super::sense::{AdditionalSense, Sense, SenseKey};
use crate::volume::device::{BlockDevice, DeviceError};

/// Whether a sanitize operation is under way, or has failed.
#[derive(Debug, Default)]
pub(super) struct Sanitizer {
    state: Cell<State>,
    is_cancelled: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// Progress in 65536ths.
    Running { progress: u16 },
    /// Only another SANITIZE helps; EXIT FAILURE MODE where AUSE allowed it.
    Failed { exit_allowed: bool },
}

/// What is done to every block.
enum Erasure {
    Unmap,
    /// Each pass writes its pattern over everything.
    Overwrite {
        passes: Vec<Bytes>,
    },
}

impl Sanitizer {
    /// The sense data that tells of an operation under way.
    pub(super) fn in_progress(&self) -> Option<Sense> {
        match self.state.get() {
            State::Running { progress } => {
                let code = AdditionalSense::SANITIZE_IN_PROGRESS;
                Some(Sense::new(SenseKey::NotReady, code).with_progress(progress))
            }
            _ => None,
        }
    }

    /// Refuses what may not happen now.
    pub(super) fn check(&self, access: Access) -> Result<(), Failure> {
        if let Some(sense) = self.in_progress() {
            return Err(sense.into());
        }
        let touches = matches!(access, Access::Read | Access::Write);
        if touches && matches!(self.state.get(), State::Failed { .. }) {
            let code = AdditionalSense::SANITIZE_COMMAND_FAILED;
            return Err(Sense::new(SenseKey::MediumError, code).into());
        }
        Ok(())
    }

    /// Has an operation that is under way end where it is, and forgets one that has failed: the next device may
    /// have had another since.
    pub(super) fn cancel(&self) {
        self.is_cancelled.set(true);
        if matches!(self.state.get(), State::Failed { .. }) {
            self.state.set(State::Idle);
        }
    }

    fn set(&self, state: State) {
        self.state.set(state);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Completes when no operation is under way.
    pub(super) async fn ended(&self) {
        poll_fn(|context| {
            if matches!(self.state.get(), State::Running { .. }) {
                self.waiting.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// SANITIZE.
    pub(super) async fn sanitize(&self, context: &Context<'_>, cdb: &Cdb, data_out: Vec<Bytes>) -> Outcome {
        self.check_reservations(context, Access::Write)?;
        if cdb.bit(1, 6) {
            return Err(Sense::invalid_cdb_bit(1, 6).into());
        }
        if let Some(reserved) = (2..7).find(|byte| cdb.byte(*byte) != 0) {
            return Err(Sense::invalid_cdb_field(reserved as u16).into());
        }
        let list_length = usize::from(cdb.u16(7));
        let erasure = match cdb.service_action() {
            OVERWRITE => self.overwrite_passes(context, &data_out, list_length)?,
            _ if list_length != 0 => return Err(Sense::invalid_cdb_field(7).into()),
            BLOCK_ERASE => Erasure::Unmap,
            EXIT_FAILURE_MODE => return self.exit_failure_mode(),
            _ => return Err(Sense::invalid_cdb_bit(1, 4).into()),
        };
        self.check_writable()?;
        self.sanitizer().is_cancelled.set(false);
        self.sanitizer().set(State::Running { progress: 0 });
        // Writes that are under way land before the erasure, not after it.
        let drain = self.tasks().drain_conflicting(context.task());
        let unit = self.shared();
        let exit_allowed = cdb.bit(1, 5); // AUSE
        self.services().runtime.spawn(Box::pin(async move {
            drain.wait().await;
            let state = match unit.erase(&erasure).await {
                Ok(()) => State::Idle,
                Err(error) if unit.sanitizer().is_cancelled.get() => {
                    tracing::warn!(volume = unit.identity().volume, %error, "sanitize ended by a move");
                    State::Idle
                }
                Err(error) => {
                    tracing::error!(volume = unit.identity().volume, %error, "sanitize failed");
                    State::Failed { exit_allowed }
                }
            };
            unit.sanitizer().set(state);
        }));
        if !cdb.bit(1, 7) {
            // Not IMMED: wait for the end, unless the task is aborted, which doesn't end the work.
            let ended = pin!(self.sanitizer().ended());
            let aborted = pin!(context.task().aborted());
            if let Either::Right(_) = select(ended, aborted).await {
                return Err(Failure::Aborted);
            }
            context.check_aborted()?;
            self.sanitizer().check(Access::Write)?;
        }
        Ok(Reply::good())
    }

    fn exit_failure_mode(&self) -> Outcome {
        match self.sanitizer().state.get() {
            State::Failed { exit_allowed: false } => Err(Sense::invalid_cdb_bit(1, 4).into()),
            _ => {
                self.sanitizer().set(State::Idle);
                Ok(Reply::good())
            }
        }
    }

    /// Parses the parameter list of OVERWRITE: a header of four bytes and the initialization pattern.
    fn overwrite_passes(
        &self,
        context: &Context<'_>,
        data_out: &[Bytes],
        list_length: usize,
    ) -> Result<Erasure, Failure> {
        let block_bytes = self.block_bytes() as usize;
        context.wants(list_length as u64);
        if !(OVERWRITE_HEADER_BYTES + 1..=OVERWRITE_HEADER_BYTES + block_bytes).contains(&list_length) {
            return Err(Sense::invalid_cdb_field(7).into());
        }
        if total_length(data_out) < list_length {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH).into());
        }
        let list = joined(data_out, list_length);
        let (invert, passes) = (list[0] & 0x80 != 0, list[0] & 0x1f);
        if passes == 0 {
            return Err(Sense::invalid_parameter(0).into());
        }
        let pattern = &list[OVERWRITE_HEADER_BYTES..];
        if usize::from(u16::from_be_bytes([list[2], list[3]])) != pattern.len() {
            return Err(Sense::invalid_parameter(2).into());
        }
        let block = |inverted: bool| -> Bytes {
            let bytes = pattern.iter().cycle().take(block_bytes);
            bytes.map(|byte| if inverted { !byte } else { *byte }).collect()
        };
        let passes = (0..passes).map(|pass| block(invert && pass % 2 == 1)).collect();
        Ok(Erasure::Overwrite { passes })
    }

    /// The device, unless the operation is to end.
    fn erasable(&self) -> Result<Rc<D>, DeviceError> {
        self.device().filter(|_| !self.sanitizer().is_cancelled.get()).ok_or(DeviceError::NotServing)
    }

    /// Does the work, at a pace that leaves other volumes their share.
    async fn erase(&self, erasure: &Erasure) -> Result<(), DeviceError> {
        let (step_bytes, passes) = match erasure {
            Erasure::Unmap => (UNMAP_STEP_BYTES, 1),
            Erasure::Overwrite { passes } => (limits::TRANSFER_BYTES, passes.len() as u64),
        };
        let step = u64::from(step_bytes / self.block_bytes());
        let blocks = self.geometry().block_count;
        for pass in 0..passes {
            let mut at = 0;
            while at < blocks {
                let count = step.min(blocks - at);
                match erasure {
                    Erasure::Unmap => self.erasable()?.unmap(at, count).await?,
                    Erasure::Overwrite { passes } => {
                        let pattern = passes[pass as usize].clone();
                        self.erasable()?.write_same(at, count, pattern).await?;
                        self.services()
                            .runtime
                            .sleep(overwrite_pause(self.block_bytes(), count, blocks))
                            .await;
                    }
                }
                at += count;
                let done = u128::from(pass) * u128::from(blocks) + u128::from(at);
                let progress = done * 65536 / (u128::from(passes) * u128::from(blocks));
                let progress = u16::try_from(progress).unwrap_or(u16::MAX);
                self.sanitizer().state.set(State::Running { progress });
            }
        }
        self.erasable()?.flush().await
    }
}

/// Pause after a step of an overwrite over `blocks` in all, of which the step is `count`: for its share
/// of the bandwidth, and of the least time that an overwrite takes.
fn overwrite_pause(block_bytes: u32, count: u64, blocks: u64) -> Duration {
    let at_full_pace = count as f64 * f64::from(block_bytes) / OVERWRITE_BYTES_PER_SECOND;
    let at_least = OVERWRITE_SECONDS * count as f64 / blocks as f64;
    Duration::from_secs_f64(at_full_pace.max(at_least))
}

const OVERWRITE: u8 = 1;
const BLOCK_ERASE: u8 = 2;
const EXIT_FAILURE_MODE: u8 = 0x1f;
const OVERWRITE_HEADER_BYTES: usize = 4;
/// Most that an overwrite writes in a second.
const OVERWRITE_BYTES_PER_SECOND: f64 = 128.0 * 1024.0 * 1024.0;
/// Least time that a pass takes, on however small a unit: initiators take the operation for a long one,
/// and look for it seconds after they have asked.
const OVERWRITE_SECONDS: f64 = 8.0;
/// Range that is unmapped at a time.
const UNMAP_STEP_BYTES: u32 = 1 << 30;

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::scsi::command::{Command, Status};
    use crate::scsi::task_set::TaskAttribute;
    use crate::scsi::testing::{Bench, good, run, sense_of};

    const ERASE: [u8; 10] = [0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn block_erase_unmaps_everything_and_refuses_other_commands_meanwhile() {
        let bench = Bench::new();
        bench.send_data(&[0x0a, 0, 0, 0, 8, 0], &[7; 8 * 512]);
        bench.device.state().held.set(true);
        assert_eq!(bench.send(&ERASE).status, Status::Good);
        assert_eq!(bench.runtime.poll(), 1);
        assert_eq!(sense_of(&bench.send(&[0; 6])), (2, 0x041b));
        assert_eq!(sense_of(&bench.send(&[0x08, 0, 0, 0, 1, 0])), (2, 0x041b));
        assert_eq!(good(&bench.send(&[0x12, 0, 0, 0, 36, 0])).len(), 36);
        let sense = good(&bench.send(&[0x03, 0, 0, 0, 18, 0]));
        assert_eq!((sense[2], sense[12], sense[13], sense[15]), (2, 4, 0x1b, 0x80));
        // Neither a reset nor the loss of the nexus ends it.
        run(bench.unit.reset(Some(bench.nexus)).wait());
        bench.send(&[0; 6]);
        assert_eq!(sense_of(&bench.send(&[0; 6])), (2, 0x041b));
        bench.device.state().held.set(false);
        assert_eq!(bench.runtime.poll(), 0);
        assert_eq!(good(&bench.send(&[0x08, 0, 0, 0, 8, 0])), [0; 8 * 512]);
    }

    #[test]
    fn overwrite_repeats_its_pattern_in_every_block() {
        let bench = Bench::with_geometry(512, 20000);
        let mut list = vec![0x83, 0, 0, 4];
        list.extend_from_slice(&[1, 2, 3, 4]);
        let cdb = [0x48, 0x81, 0, 0, 0, 0, 0, 0, 8, 0];
        assert_eq!(bench.send_data(&cdb, &list).status, Status::Good);
        assert_eq!(bench.runtime.poll(), 0);
        let block = good(&bench.send(&[0x28, 0, 0, 0, 0x4e, 0x1f, 0, 0, 1, 0]));
        assert_eq!(block, [1, 2, 3, 4].repeat(128));
        for (byte, value) in [(0, 0), (3, 5), (3, 0)] {
            let mut bad = list.clone();
            bad[byte] = value;
            assert_eq!(sense_of(&bench.send_data(&cdb, &bad)), (5, 0x2600));
        }
        assert_eq!(sense_of(&bench.send_data(&[0x48, 1, 0, 0, 0, 0, 0, 0, 4, 0], &list)), (5, 0x2400));
        assert_eq!(sense_of(&bench.send_data(&[0x48, 1, 0, 0, 0, 0, 0, 2, 5, 0], &[1; 517])), (5, 0x2400));
    }

    #[test]
    fn reserved_bits_and_unknown_service_actions_are_refused() {
        let bench = Bench::new();
        for (byte, value) in [(1, 0xc2), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (8, 8)] {
            let mut cdb = ERASE;
            cdb[byte] = value;
            assert_eq!(sense_of(&bench.send(&cdb)), (5, 0x2400));
        }
        for action in (0..0x1f).filter(|action| !(1..=2).contains(action)) {
            assert_eq!(sense_of(&bench.send(&[0x48, action, 0, 0, 0, 0, 0, 0, 0, 0])), (5, 0x2400));
        }
    }

    #[test]
    fn an_abort_ends_the_waiting_but_not_the_work() {
        let bench = Bench::new();
        bench.device.state().held.set(true);
        let task = bench.unit.admit(bench.nexus, 3, TaskAttribute::Simple).unwrap();
        let command = Command::new(&[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], 0);
        let mut execution = pin!(bench.unit.execute(task, command));
        let mut context = Context::from_waker(Waker::noop());
        assert!(execution.as_mut().poll(&mut context).is_pending());
        bench.runtime.poll();
        let drain = bench.unit.abort_task(bench.nexus, 3).unwrap();
        assert_eq!(execution.as_mut().poll(&mut context), Poll::Ready(None));
        run(drain.wait());
        assert_eq!(sense_of(&bench.send(&[0; 6])), (2, 0x041b));
    }

    #[test]
    fn a_failure_shuts_the_medium_until_it_is_left() {
        let bench = Bench::new();
        *bench.device.state().failure.borrow_mut() = Some(DeviceError::Offline);
        bench.send(&ERASE);
        bench.runtime.poll();
        *bench.device.state().failure.borrow_mut() = None;
        assert_eq!(sense_of(&bench.send(&[0x08, 0, 0, 0, 1, 0])), (3, 0x3103));
        let exit = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(sense_of(&bench.send(&exit)), (5, 0x2400)); // AUSE was not set
        bench.send(&ERASE);
        bench.runtime.poll();
        assert_eq!(bench.send(&exit).status, Status::Good);
        good(&bench.send(&[0x08, 0, 0, 0, 1, 0]));
    }
}
