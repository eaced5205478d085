//! What a connection carries between two threads. `cargo test --release --lib mirror_stream -- --ignored --nocapture`
//! prints it, see `docs/benchmarks.md`.

use std::collections::VecDeque;
use std::sync::mpsc;

use super::*;

/// A replica on a thread of its own that answers every write, and counts.
struct Echo;

struct EchoReceiver {
    answer: Box<dyn Fn(FromReplica)>,
}

impl MirrorHandler for Echo {
    fn connected(&self, _link: Rc<dyn ReplicaLink>) {}
    fn disconnected(&self) {}
    fn received(&self, _answer: FromReplica) {}
    fn accept(&self, answer: Box<dyn Fn(FromReplica)>) -> Rc<dyn Incoming> {
        Rc::new(EchoReceiver { answer })
    }
}

impl Incoming for EchoReceiver {
    fn receive(&self, message: ToReplica) -> LocalBoxFuture<'_, ()> {
        if let ToReplica::Write { volume, stream, version, .. } = message {
            (self.answer)(FromReplica::Durable { volume, stream, version });
        }
        Box::pin(std::future::ready(()))
    }
}

/// Keeps so many writes in flight until all are answered.
struct Load {
    link: RefCell<Option<Rc<dyn ReplicaLink>>>,
    blocks: u64,
    total: u32,
    sent: Cell<u32>,
    answered: Cell<u32>,
    times: RefCell<VecDeque<Instant>>,
    round_trips: RefCell<Vec<Duration>>,
    template: ToReplica,
    done: tokio::sync::Notify,
}

impl Load {
    fn send(&self) {
        if self.sent.get() < self.total {
            self.sent.set(self.sent.get() + 1);
            self.times.borrow_mut().push_back(Instant::now());
            self.link.borrow().as_ref().unwrap().send(self.template.clone());
        }
    }
}

impl MirrorHandler for Load {
    fn connected(&self, link: Rc<dyn ReplicaLink>) {
        *self.link.borrow_mut() = Some(link);
        self.done.notify_one();
    }

    fn disconnected(&self) {
        assert_eq!(self.answered.get(), self.total, "the connection was lost");
    }

    fn received(&self, _answer: FromReplica) {
        let sent = self.times.borrow_mut().pop_front().unwrap();
        self.round_trips.borrow_mut().push(sent.elapsed());
        self.answered.set(self.answered.get() + 1);
        if self.answered.get() == self.total {
            self.done.notify_one();
        }
        self.send();
    }

    fn accept(&self, _answer: Box<dyn Fn(FromReplica)>) -> Rc<dyn Incoming> {
        unreachable!("the replica has no peer to call")
    }
}

/// How often this thread has slept, and how long it has worked, in seconds.
fn thread_cost() -> (u64, f64) {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let slept = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    (slept.trim().parse().unwrap(), time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

#[test]
#[ignore = "measures; in release mode, by hand"]
fn figures() {
    let room = Room::new();
    let (b, b_address) = listen(2);
    let setup = room.setup("b", b, &["127.0.0.1:9".parse().unwrap()]);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (cost, costs) = mpsc::channel();
    let replica = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async move {
            let _connections = MirrorConnections::start(setup, Rc::new(Echo), None).unwrap();
            let _ = stopped.await;
            cost.send(thread_cost()).unwrap();
        });
    });
    for (depth, blocks, total) in
        [(1, 1, 10_000), (32, 1, 50_000), (256, 1, 100_000), (32, 16, 10_000), (32, 64, 4_000)]
    {
        let setup = room.setup("a", listen(1).0, &[b_address]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, measure(setup, depth, blocks, total));
    }
    stop.send(()).unwrap();
    replica.join().unwrap();
    let (slept, seconds) = costs.recv().unwrap();
    println!("the replica's thread slept {slept} times and worked {seconds:.1} s in all");
}

async fn measure(setup: MirrorSetup, depth: u32, blocks: u64, total: u32) {
    let load = Rc::new(Load {
        link: RefCell::default(),
        blocks,
        total,
        sent: Cell::new(0),
        answered: Cell::new(0),
        times: RefCell::default(),
        round_trips: RefCell::default(),
        template: write(7, blocks),
        done: tokio::sync::Notify::new(),
    });
    let _connections = MirrorConnections::start(setup, load.clone(), None).unwrap();
    load.done.notified().await;
    let (slept_before, worked_before) = thread_cost();
    let started = Instant::now();
    (0..depth).for_each(|_| load.send());
    load.done.notified().await;
    let seconds = started.elapsed().as_secs_f64();
    let (slept, worked) = thread_cost();
    let mut times = load.round_trips.borrow_mut();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!(
        "{:4} KiB, depth {depth:3}: {:7.0} writes/s, {:5.0} MB/s, round trip {:5.0} us (p99 {:5.0}), \
         {:.2} sleeps and {:.1} us of CPU a write at the sender",
        load.blocks * 4,
        f64::from(total) / seconds,
        f64::from(total) * (load.blocks * 4096) as f64 / seconds / 1e6,
        at(0.5),
        at(0.99),
        (slept - slept_before) as f64 / f64::from(total),
        (worked - worked_before) * 1e6 / f64::from(total),
    );
}
