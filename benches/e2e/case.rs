//! The standard cases.

/// One kind of load.
pub struct Case {
    pub name: &'static str,
    pub writes: bool,
    /// Random addresses, else one after the other.
    pub random: bool,
    pub block_bytes: u32,
    /// Commands in flight in each session.
    pub queue_depth: usize,
    pub sessions: usize,
}

/// In this order: sequential reads come before the random writes, which scatter what a log holds, and once after them.
pub const CASES: &[Case] = &[
    sequential("read-128k", false, 128 << 10, 8),
    sequential("write-128k", true, 128 << 10, 8),
    sequential("read-1m", false, 1 << 20, 4),
    sequential("write-1m", true, 1 << 20, 4),
    random("random-read-1", false, 1, 1),
    random("random-write-1", true, 1, 1),
    random("random-read-32", false, 32, 1),
    random("random-write-32", true, 32, 1),
    random("random-read-4x32", false, 32, 4),
    random("random-write-4x32", true, 32, 4),
    sequential("read-1m-scattered", false, 1 << 20, 4),
];

const fn random(name: &'static str, writes: bool, queue_depth: usize, sessions: usize) -> Case {
    Case { name, writes, random: true, block_bytes: 4096, queue_depth, sessions }
}

const fn sequential(name: &'static str, writes: bool, block_bytes: u32, queue_depth: usize) -> Case {
    Case { name, writes, random: false, block_bytes, queue_depth, sessions: 1 }
}

impl Case {
    /// Addresses of the case as block numbers, endless; sessions work on parts of their own when sequential.
    pub fn addresses(&self, session: usize, blocks: u64, seed: u64) -> Addresses {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Addresses { random: self.random, blocks, next: blocks / self.sessions as u64 * session as u64, state }
    }
}

/// The block numbers that a session goes to.
pub struct Addresses {
    random: bool,
    blocks: u64,
    next: u64,
    state: u64,
}

impl Addresses {
    pub fn next(&mut self) -> u64 {
        if self.random {
            // xorshift64*: cheap, and even enough for addresses.
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            return (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % self.blocks;
        }
        let address = self.next % self.blocks;
        self.next += 1;
        address
    }
}
