//! The iSCSI target side (RFC 7143) as pure state machines: bytes in, effects out.
//!
//! Nothing here knows a socket, a clock or a runtime: the driver reads and writes the bytes and
//! passes the present and random bytes in. CDBs, status and sense are opaque here (`scsi` makes and
//! reads them; the daemon joins the two).

pub mod initiator;
pub mod pdu;
