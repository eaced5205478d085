//! What an initiator may see of one block: linearizability, and no resurrection.
//!
//! Every write has its own value, 1 to 3; 0 is what was there before. The oracle keeps every *world* in
//! which all that was observed makes sense: the block's present value, and which writes have happened.
//! When no world is left, some read or acknowledgement contradicted the others (I15).
//!
//! Stricter than linearizability (I16): a write whose server has lost it, or was replaced, may take
//! effect only until its successor serves the block; never after.

/// A value; also the number of the write that wrote it.
pub type Value = u8;

/// Most writes of a run, over all blocks.
pub const MOST_WRITES: u8 = 3;

/// What is known of one block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Oracle {
    /// Bit `4 * happened + value` for each world, where `happened` has bit `write - 1`.
    worlds: u32,
    /// Writes that may still happen: bit `write - 1`.
    open: u8,
}

impl Oracle {
    pub fn new() -> Self {
        Self { worlds: 1, open: 0 }
    }

    /// Everything before is forgotten: an operator accepted that data is lost, and `value` is left.
    pub fn lose_all_but(&mut self, value: Value) {
        // No write is open: none of those before may come back, or be acknowledged.
        *self = Self { worlds: 1 << value, open: 0 };
    }

    /// A server that holds write `own` in flight (0: none) now serves the block: no write of anybody
    /// else happens from here on.
    pub fn served_by_holder_of(&mut self, own: Value) {
        self.worlds = self.closure();
        self.open &= bit(own);
    }

    pub fn invoked(&mut self, write: Value) {
        self.open |= bit(write);
    }

    pub fn acknowledged(&mut self, write: Value) {
        self.worlds = self.closure() & worlds_where(|_, happened| happened & bit(write) != 0);
        self.open &= !bit(write);
    }

    pub fn read(&mut self, value: Value) {
        self.worlds = self.closure() & worlds_where(|present, _| present == value);
    }

    pub fn is_contradicted(&self) -> bool {
        self.worlds == 0
    }

    /// Worlds reached when any of the open writes happen, in any order.
    fn closure(&self) -> u32 {
        let mut worlds = self.worlds;
        for _ in 0..MOST_WRITES {
            for write in (1..=MOST_WRITES).filter(|write| self.open & bit(*write) != 0) {
                for happened in (0..8).filter(|happened| happened & bit(write) == 0) {
                    if (worlds >> (4 * happened)) & 0b1111 != 0 {
                        worlds |= 1 << (4 * (happened | bit(write)) + write);
                    }
                }
            }
        }
        worlds
    }
}

fn bit(write: Value) -> u8 {
    if write == 0 { 0 } else { 1 << (write - 1) }
}

fn worlds_where(is_kept: impl Fn(Value, u8) -> bool) -> u32 {
    let kept = (0..32u8).filter(|world| is_kept(world % 4, world / 4));
    kept.fold(0, |worlds, world| worlds | 1 << world)
}

#[test]
fn an_unacknowledged_write_may_appear_once_and_never_late() {
    let mut oracle = Oracle::new();
    oracle.served_by_holder_of(0);
    oracle.invoked(1);
    let mut appeared = oracle;
    appeared.read(1);
    assert!(!appeared.is_contradicted());
    appeared.read(0);
    assert!(appeared.is_contradicted(), "flipped back");
    // The server died; another one is read without the write. From then on it must not appear.
    oracle.served_by_holder_of(0);
    oracle.read(0);
    assert!(!oracle.is_contradicted());
    oracle.read(1);
    assert!(oracle.is_contradicted(), "resurrected");
}

#[test]
fn an_acknowledged_write_stays() {
    let mut oracle = Oracle::new();
    oracle.invoked(1);
    oracle.acknowledged(1);
    let mut lost = oracle;
    lost.read(0);
    assert!(lost.is_contradicted());
    oracle.invoked(2);
    oracle.acknowledged(2);
    oracle.read(1);
    assert!(oracle.is_contradicted(), "overwritten data came back");
}
