//! Messages to a connection's task from the rest of the data thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use crate::iscsi::connection::CloseReason;
use crate::iscsi::sessions::Tsih;

/// What a connection can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The session whose place it takes has drained: go on with the login.
    Admit(Tsih),
    /// Ask the initiator to log out.
    AskForLogout,
    /// End now.
    Drop(CloseReason),
}

/// Where a connection's messages wait. Clones are handles of the same box.
#[derive(Clone, Default)]
pub struct Mailbox {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    messages: RefCell<Vec<Message>>,
    poked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Mailbox {
    /// Leaves a message.
    pub fn send(&self, message: Message) {
        self.shared.messages.borrow_mut().push(message);
        self.poke();
    }

    /// Makes the connection look again at what it waits for.
    pub fn poke(&self) {
        self.shared.poked.set(true);
        if let Some(waker) = self.shared.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether there was a poke since the last call; the next one wakes `waker`.
    pub fn take_poke(&self, waker: &Waker) -> bool {
        let mut known = self.shared.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
        self.shared.poked.replace(false)
    }

    /// The messages that have come, oldest first.
    pub fn take(&self) -> Vec<Message> {
        self.shared.messages.take()
    }
}
