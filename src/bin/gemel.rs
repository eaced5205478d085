//! The `gemel` binary: the command line.

fn main() -> std::process::ExitCode {
    gemel::cli::run()
}
