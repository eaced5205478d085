//! The witness, `gemel-witness`: the third vote of a mirrored pair.
//!
//! A member of the quorum and nothing else: no data, no clients, one small log. Like `gemeld` it says to the
//! service manager when it is ready and when it stops; SIGTERM and SIGINT stop it in order. It is ready when
//! it listens, whether or not there is a majority.

pub mod config;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use self::config::Config;
use crate::cluster::quorum::SeatKind;
use crate::cluster::versions::Claim;
use crate::daemon::listen::listen;
use crate::daemon::notify;
use crate::peer::quorum::{QuorumSetup, start};

/// Exit code of a service that could not start.
const FAILED: u8 = 1;
/// Exit code of wrong usage (EX_USAGE).
const USAGE: u8 = 64;

/// The gemel witness.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Where the configuration is.
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// For tests of clusters whose members run different releases: say that this one speaks these versions of a protocol
    /// between members, whatever it does speak.
    #[arg(long, hide = true, value_name = "PROTOCOL=OLDEST..NEWEST")]
    claim_protocol: Vec<Claim>,
    /// Print the manual page.
    #[arg(long, hide = true)]
    man: bool,
}

/// Why the service ended early. The text says what to do.
type Failure = Box<dyn std::error::Error>;

/// Runs `gemel-witness` and gives its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            let code = if message.use_stderr() { USAGE } else { 0 };
            // Nothing can be done about an output that does not take the help text.
            let _ = message.print();
            return ExitCode::from(code);
        }
    };
    if arguments.man {
        let page = clap_mangen::Man::new(Arguments::command().name("gemel-witness")).section("8");
        // Nothing can be done about an output that does not take it.
        let _ = page.render(&mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    start_log();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(serve(&arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gemel-witness: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Logs to standard error, where the service manager takes it; `GEMEL_LOG` sets the level.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GEMEL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

async fn serve(arguments: &Arguments) -> Result<(), Failure> {
    // From the first moment on a signal is a request to stop in order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let Config { name, state_dir: directory, pair: mut settings } = Config::load(&arguments.config)?;
    settings.speaks = settings.speaks.with(&arguments.claim_protocol);
    let listeners = settings.listen.iter().map(|address| listen(*address, "the pair", "pair.listen"));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    tracing::info!(%name, version = env!("CARGO_PKG_VERSION"), "the witness starts");
    let (quorum, thread) =
        start(QuorumSetup { name, kind: SeatKind::Witness, directory, settings, listeners, services: None })?;
    notify::notify(notify::READY);
    let mut status = quorum.watch_status();
    let ended = async {
        // An error is the end of the thread.
        let failed = status.wait_for(|status| status.view.failure.is_some()).await;
        failed.ok().and_then(|status| status.view.failure.clone())
    };
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        failure = ended => Some(failure.unwrap_or_else(|| "the quorum's thread has ended".to_owned())),
    };
    notify::notify(notify::STOPPING);
    quorum.stop().await;
    thread.join().map_err(|_| "the quorum's thread panicked; the log says where")?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}
