//! The `gemeld` binary: the storage service.

/// The data path makes many short-lived objects of few sizes, on one thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    gemel::daemon::run()
}
