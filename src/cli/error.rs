//! What a command can fail with, and its exit code.

/// Exit code: the command was not understood.
pub const USAGE: u8 = 64;
/// Exit code: the node understood the command and refused it.
pub const REFUSED: u8 = 65;
/// Exit code: no node could be reached.
pub const UNREACHABLE: u8 = 69;
/// Exit code: something on this machine did not work: a file, a process, the network.
pub const LOCAL: u8 = 74;

/// Why a command failed. The text is for people and ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Arguments that no node needs to be asked about.
    #[error("{0}")]
    Usage(String),
    /// A node refused.
    #[error("{0}")]
    Refused(String),
    /// No node answered.
    #[error("{0}")]
    Unreachable(String),
    /// Something on this machine.
    #[error("{0}")]
    Local(String),
    /// Standard output does not take any more.
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
}

impl CliError {
    /// The code that the process exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Refused(_) => REFUSED,
            Self::Unreachable(_) => UNREACHABLE,
            Self::Local(_) | Self::Output(_) => LOCAL,
        }
    }

    /// Whether whoever reads the output has read enough (`gemel event follow | head`).
    #[must_use]
    pub fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => {
                Self::Unreachable(format!("the node stopped answering: {message}; is gemeld still running?"))
            }
            tonic::Code::Unimplemented => Self::Refused(
                "the node does not know this command: its gemeld is older than this gemel; upgrade it"
                    .to_owned(),
            ),
            _ => Self::Refused(message),
        }
    }
}
