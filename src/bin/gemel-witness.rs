//! The `gemel-witness` binary.

fn main() {}
