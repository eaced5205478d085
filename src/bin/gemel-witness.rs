//! The `gemel-witness` binary.

fn main() -> std::process::ExitCode {
    gemel::witness::run()
}
