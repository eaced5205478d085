//! The `gemeld` binary: the storage service.

fn main() -> std::process::ExitCode {
    gemel::daemon::run()
}
