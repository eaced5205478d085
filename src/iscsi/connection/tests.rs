//! Connections in virtual time against a small initiator made of the codec.

mod commands;
mod initiator;
mod life;
mod memory;
mod negative;
