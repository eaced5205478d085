//! The ceiling: the disk itself, one file with O_DIRECT through the product's own disk engine, no network, no
//! flush.

use std::error::Error;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use gemel::base::buffer::BufferPool;
use gemel::disk::{Disk, DiskError, Engine, EnginePreference, OpenOptions, open};
use hdrhistogram::Histogram;

use crate::case::Case;
use crate::load::{Contents, Measurement};
use crate::process::{Usage, prewrite};
use crate::{Target, VOLUME_BYTES};

struct Raw {
    engine: Engine,
    disk: Rc<dyn Disk>,
    pool: BufferPool,
}

pub fn start(folder: &Path) -> Result<impl Target + use<>, Box<dyn Error>> {
    let file = folder.join("raw.img");
    prewrite(&file, VOLUME_BYTES)?;
    let engine = Engine::start(EnginePreference::Automatic)?;
    let disk = open(&engine, &file, &OpenOptions::default())?;
    Ok(Raw { engine, disk, pool: BufferPool::new(64 << 20) })
}

impl Target for Raw {
    fn name(&self) -> &str {
        "raw"
    }

    fn measure(&mut self, case: &Case, duration: Duration) -> Result<Measurement, Box<dyn Error>> {
        let mut latency_ns = Histogram::new(3)?;
        let (before, start) = (Usage::of(&[std::process::id()])?, Instant::now());
        let operations = self.engine.block_on(self.run(case, start + duration, &mut latency_ns))?;
        let usage = Usage::of(&[std::process::id()])?.since(&before);
        Ok(Measurement { operations, elapsed: start.elapsed(), latency_ns, usage })
    }
}

impl Raw {
    /// Keeps the case's depth of all sessions in flight until `deadline`; returns how many operations ended.
    async fn run(
        &self,
        case: &Case,
        deadline: Instant,
        latency_ns: &mut Histogram<u64>,
    ) -> Result<u64, Box<dyn Error>> {
        let size = u64::from(case.block_bytes);
        let mut addresses = case.addresses(0, VOLUME_BYTES / size, 7);
        let data = &self.pool.copy_of(&Contents::new(case.block_bytes as usize).next()).freeze();
        let mut running = FuturesUnordered::new();
        let mut operations = 0;
        loop {
            while running.len() < case.queue_depth * case.sessions && Instant::now() < deadline {
                let (offset, started) = (addresses.next() * size, Instant::now());
                running.push(async move {
                    if case.writes {
                        self.disk.write(offset, vec![data.clone()]).await?;
                    } else {
                        self.disk.read(offset, self.pool.get(size as usize)).await?;
                    }
                    Ok::<_, DiskError>(started)
                });
            }
            let Some(started) = running.next().await else { return Ok(operations) };
            latency_ns.record(started?.elapsed().as_nanos() as u64)?;
            operations += 1;
        }
    }
}
