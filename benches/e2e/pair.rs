//! A mirrored volume and a local one of the same pair, both served by node a.
//!
//! Node a runs on the targets' CPU, node b and the witness on that of the load: two processors for a cluster that has
//! four or more where it matters. What the mirror costs is the ratio of the two volumes, not a figure of either.

use std::error::Error;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use gemel::disk::file::Allocation;

use crate::case::Case;
use crate::cluster::{Cluster, ClusterSettings};
use crate::load::{self, Measurement, Portal};
use crate::{LOAD_CPU, TARGET_CPU, Target};

/// The volume on both nodes, and the one on node a alone.
pub const MIRRORED: &str = "pair-mirrored";
pub const LOCAL: &str = "pair-local";

/// Bytes of each volume: node a has both, and the disk is to hold them three times over with parity and room to clean.
const VOLUME_BYTES: u64 = 512 << 20;

struct Volume {
    name: &'static str,
    portal: Portal,
    /// Ends the processes when the benchmark is over.
    _cluster: Rc<Cluster>,
}

/// Starts a pair, and fills those of its volumes that are wanted.
pub fn start(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<Box<dyn Target>>, Box<dyn Error>> {
    let names: Vec<&'static str> = [LOCAL, MIRRORED].into_iter().filter(|name| wanted(name)).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let settings = ClusterSettings {
        // Of both volumes twice the data on three of four disks, so that cleaning has its usual room.
        disk_bytes: 2 * VOLUME_BYTES * 2 / 3 / (1 << 20) * (1 << 20),
        allocation: Allocation::Preallocated,
        cpus: [("a", TARGET_CPU), ("b", LOAD_CPU), ("w", LOAD_CPU)].into(),
        ..ClusterSettings::default()
    };
    let cluster = Rc::new(Cluster::start_at(&folder.join("pair"), settings));
    let mut targets: Vec<Box<dyn Target>> = Vec::new();
    for name in names {
        let local: &[&str] = if name == LOCAL { &["--local"] } else { &[] };
        let size = format!("{}M", VOLUME_BYTES >> 20);
        let target_name = cluster.create_volume(name, &size, &[&["--primary", "a"], local].concat());
        let mut processes = vec![cluster.pid("a")];
        if name == MIRRORED {
            cluster.wait_in_sync("a", name);
            processes.push(cluster.pid("b"));
        }
        let portal =
            Portal { address: cluster.portal("a"), target_name, lun: 0, bytes: VOLUME_BYTES, processes };
        load::fill(&portal)?;
        targets.push(Box::new(Volume { name, portal, _cluster: cluster.clone() }));
    }
    Ok(targets)
}

impl Target for Volume {
    fn name(&self) -> &str {
        self.name
    }

    fn measure(&mut self, case: &Case, duration: Duration) -> Result<Measurement, Box<dyn Error>> {
        load::run(&self.portal, case, duration)
    }
}
