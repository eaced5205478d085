//! The engines under an event loop as the daemon has one: parked on the engine's descriptor in an
//! edge-triggered epoll, submitting once a turn. A lost wake-up shows as a timeout.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::rc::Rc;
use std::time::Duration;

use gemel::base::buffer::AlignedBuf;
use gemel::disk::file::{Allocation, create};
use gemel::disk::{Disk, Engine, EnginePreference, OpenOptions, open};
use gemel::sim::random::Random;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;

const SIZE: u64 = 16 << 20;

#[test]
fn no_completion_is_lost_between_reaping_and_parking() {
    for preference in [EnginePreference::Uring, EnginePreference::Threads] {
        let Ok(engine) = Engine::start(preference) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        create(&path, SIZE, Allocation::Preallocated).unwrap();
        let disk = open(&engine, &path, &OpenOptions::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Few clients let the loop run dry and park all the time; many keep it busy.
        for clients in [1, 3, 48] {
            runtime.block_on(async {
                let tasks = LocalSet::new();
                let run = tasks.run_until(serve(engine.clone(), disk.clone(), clients));
                tokio::time::timeout(Duration::from_secs(60), run).await.expect("a completion was lost");
            });
        }
    }
}

async fn serve(engine: Engine, disk: Rc<dyn Disk>, clients: u64) {
    let reactor = tokio::task::spawn_local(turn(engine));
    let running: Vec<_> = (0..clients)
        .map(|seed| tokio::task::spawn_local(client(disk.clone(), seed, 6000 / clients)))
        .collect();
    for client in running {
        client.await.unwrap();
    }
    reactor.abort();
}

/// The event loop's part: hand over, park, take back.
async fn turn(engine: Engine) {
    // SAFETY: the engine owns the descriptor and never changes it, and `watched` owns the engine.
    let watched = unsafe { AsyncFd::register_with_interest(engine, Interest::READABLE) }.unwrap();
    let engine = watched.get_ref();
    loop {
        // Those that were woken run first and ask for more; nothing else wakes them.
        tokio::task::yield_now().await;
        engine.submit();
        if engine.reap() > 0 {
            continue;
        }
        watched.readable().await.unwrap().clear_ready();
        engine.reap();
    }
}

async fn client(disk: Rc<dyn Disk>, seed: u64, operations: u64) {
    let random = Random::new(seed);
    let data = AlignedBuf::copy_of(&[1; 4096]).freeze();
    for _ in 0..operations {
        let offset = random.below(SIZE / 4096) * 4096;
        match random.below(10) {
            0 => disk.flush().await.unwrap(),
            1..5 => disk.write(offset, vec![data.clone()]).await.unwrap(),
            _ => drop(disk.read(offset, AlignedBuf::zeroed(4096)).await.unwrap()),
        }
    }
}
