//! The `gemel` binary.

fn main() {}
