//! The node under measurement: RAID-5 over four file disks, written through beforehand.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use gemel::disk::file::Allocation;

use crate::case::Case;
use crate::load::{self, Measurement, Portal};
use crate::node::{Node, NodeSettings};
use crate::{TARGET_CPU, Target, VOLUME_BYTES};

/// The target without disks beneath it.
pub const PROTOCOL_ONLY: &str = "gemeld-memory";

struct Gemeld {
    name: &'static str,
    portal: Portal,
    /// Ends the process when the benchmark is over.
    _node: Node,
}

/// Starts a node and fills its volume; a pool in memory shows what the protocol alone costs.
pub fn start(folder: &Path, name: &'static str) -> Result<impl Target + use<>, Box<dyn Error>> {
    let settings = NodeSettings {
        // Twice the volume in data on three of four disks, so that cleaning has its usual room.
        disk_bytes: VOLUME_BYTES * 2 / 3 / (1 << 20) * (1 << 20),
        allocation: Allocation::Preallocated,
        cpu: Some(TARGET_CPU),
        memory_pool: (name == PROTOCOL_ONLY).then_some(VOLUME_BYTES * 2),
        ..NodeSettings::default()
    };
    let node = Node::start(&folder.join(name), settings);
    let target_name = node.create_volume("bench", &format!("{}M", VOLUME_BYTES >> 20));
    let processes = vec![node.process_id()];
    let portal = Portal { address: node.portals[0], target_name, lun: 0, bytes: VOLUME_BYTES, processes };
    load::fill(&portal)?;
    Ok(Gemeld { name, portal, _node: node })
}

impl Target for Gemeld {
    fn name(&self) -> &str {
        self.name
    }

    fn measure(&mut self, case: &Case, duration: Duration) -> Result<Measurement, Box<dyn Error>> {
        load::run(&self.portal, case, duration)
    }
}
