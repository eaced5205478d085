//! Volumes over a store in memory, under the deterministic executor.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod behaviour;
mod model;
mod resize;

use std::rc::Rc;
use std::time::Duration;

use gemel::base::buffer::BufferPool;
use gemel::base::runtime::RuntimeHandle;
use gemel::base::units::VolumeId;
use gemel::sim::executor::{Executor, World};
use gemel::sim::memory_store::MemoryStore;
use gemel::volume::device::{BlockDevice, DeviceGeometry};
use gemel::volume::{Volume, VolumeParameters, VolumeServices};

/// One volume on a store whose operations take up to a tenth of a millisecond.
struct Rig {
    executor: Executor,
    world: Rc<World>,
    store: Rc<MemoryStore>,
    volume: Volume<MemoryStore>,
}

impl Rig {
    fn new(seed: u64, logical_block_bytes: u32, block_count: u64) -> Self {
        let executor = Executor::new(seed);
        let world = executor.world("node");
        let store = Rc::new(MemoryStore::new(world.clone(), Duration::from_micros(100)));
        let geometry = DeviceGeometry { logical_block_bytes, block_count };
        let volume = open(3, geometry, world.clone(), store.clone());
        Self { executor, world, store, volume }
    }

    /// The volume as another epoch opens it, with another size.
    fn reopen(&self, block_count: u64) -> Volume<MemoryStore> {
        let geometry = DeviceGeometry { block_count, ..self.volume.geometry() };
        open(4, geometry, self.world.clone(), self.store.clone())
    }

    fn run<F: Future>(&self, main: F) -> F::Output {
        self.executor.block_on(main).unwrap()
    }
}

fn open(
    epoch: u32,
    geometry: DeviceGeometry,
    runtime: RuntimeHandle,
    store: Rc<MemoryStore>,
) -> Volume<MemoryStore> {
    let parameters = VolumeParameters { id: VOLUME, epoch, next_sequence: 17, geometry };
    Volume::open(parameters, VolumeServices { store, runtime, pool: BufferPool::new(1 << 20) })
}

const VOLUME: VolumeId = VolumeId(5);
