//! Formats of the control state and of the log's commands, and when a cluster goes over to a newer one.
//!
//! A program reads the newest format that it knows and all older ones. A cluster keeps the format that it has until every
//! voter knows a newer one; then its leader raises it ([`Command::RaiseFormat`]). Until then nothing is proposed, nor kept in
//! a snapshot of the state, that the older programs among the voters can't read, so members are brought to a new release
//! one after the other, and back. From then on a program that does not know the format is refused.

use super::access::AllowedInitiator;
use super::{Command, ControlState, Outcome, Rejection};

/// The newest format that this program knows.
pub const NEWEST_FORMAT: u32 = 9;

/// The oldest that it writes: what older ones did not have is filled in when they are read.
const OLDEST_WRITTEN: u32 = 8;

/// The newest format that a program knows which speaks this version of the control protocol.
#[must_use]
pub fn of_version(control_version: u32) -> u32 {
    control_version.saturating_add(OLDEST_WRITTEN - 1)
}

/// The oldest version of the control protocol whose programs know this format.
#[must_use]
pub fn version_of(format: u32) -> u32 {
    format.saturating_sub(OLDEST_WRITTEN - 1).max(1)
}

impl ControlState {
    /// Its format.
    #[must_use]
    pub fn format(&self) -> u32 {
        self.format
    }

    /// The state before the first command, of a cluster whose founder knows no newer format than this.
    #[must_use]
    pub fn in_format(newest_known: u32) -> Self {
        Self { format: newest_known.clamp(OLDEST_WRITTEN, NEWEST_FORMAT), ..Self::new() }
    }

    /// The format in which a state that was read is kept.
    pub(super) fn kept_format(read: u32) -> u32 {
        read.max(OLDEST_WRITTEN)
    }

    /// The command has to be one of the state's format.
    pub(in crate::cluster) fn check_format(&self, command: &Command) -> Result<(), Rejection> {
        let needed = command.format();
        if needed <= self.format || matches!(command, Command::RaiseFormat { .. }) {
            return Ok(());
        }
        Err(Rejection::NewerFormat { needed, present: self.format })
    }

    pub(super) fn raise_format(&mut self, format: u32) -> Outcome {
        if format <= self.format {
            return Outcome::Unchanged;
        }
        self.format = format;
        Outcome::Changed
    }
}

impl Command {
    /// The oldest format that can say this.
    #[must_use]
    pub fn format(&self) -> u32 {
        match self {
            Self::RaiseFormat { format } => *format,
            Self::ChangeSettings { settings } if settings.space_error_percent.is_some() => 9,
            Self::ChangeHostGroup { .. }
            | Self::RemoveHostGroup { .. }
            | Self::RevokeAdministrator { .. }
            | Self::AllowInitiator { initiator: AllowedInitiator::Group(_), .. }
            | Self::DenyInitiator { initiator: AllowedInitiator::Group(_), .. } => 9,
            _ => OLDEST_WRITTEN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::versions::{Protocol, Spoken};

    #[test]
    fn what_a_program_speaks_says_which_format_it_knows() {
        let newest = Spoken::default().of(Protocol::Control).newest();
        assert_eq!(of_version(newest), NEWEST_FORMAT);
        assert_eq!(version_of(NEWEST_FORMAT), newest);
        assert_eq!((of_version(1), version_of(1), version_of(8)), (8, 1, 1));
    }
}
