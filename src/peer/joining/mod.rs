//! How a machine becomes a member: it shows a [token](token::JoinToken), and gets a certificate for a key of its own.
//!
//! The machine connects to the node that made the token, verifies that it has a certificate of the authority that the
//! token names, and sends the token's secret with its public key. The [desk] checks the secret against the
//! [book](book::TokenBook) and answers with the certificate, the authority's certificate, and who is in the cluster; a node
//! gets the authority's key too. Private keys of members are in no message.
//!
//! Guarantees: a seat is given to one key a token; asking again with that key is answered again, so joining can be
//! repeated when it was interrupted anywhere. Left to others: files on the machine that joins (the command line).

pub mod book;
pub mod client;
pub mod desk;
pub mod guard;
pub mod token;

/// Version of the service for joining.
pub const JOINING_PROTOCOL: u32 = 1;
