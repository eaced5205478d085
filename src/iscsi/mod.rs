//! The iSCSI target side (RFC 7143) as pure state machines: bytes in, effects out.
//!
//! Nothing here knows a socket, a clock or a runtime: the driver moves the bytes and passes the
//! present and random bytes in. One [`Connection`] for each TCP connection;
//! one [`Sessions`] and one [`DataBudget`] for all of them.
//! CDBs, status and sense are opaque here (`scsi` makes and reads them; the daemon joins the two).

pub mod budget;
pub mod connection;
pub mod fuzzing;
pub mod initiator;
pub mod login;
pub mod names;
pub mod pdu;
pub mod policy;
pub mod sessions;
pub mod settings;
pub mod text;

pub use budget::DataBudget;
pub use connection::{Connection, ConnectionContext, Event};
pub use names::IscsiName;
pub use policy::LoginPolicy;
pub use sessions::Sessions;
pub use settings::TargetSettings;
