//! The `gemeld` binary.

fn main() {}
