//! The configuration of `gemel-witness`: `/etc/gemel/witness.toml`, whose keys `deploy/witness.toml` documents.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::peer::settings::PeerSettings;

/// Where the configuration is looked for when no other place is given.
pub const DEFAULT_PATH: &str = "/etc/gemel/witness.toml";

/// The whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the witness.
    pub name: NodeName,
    /// Directory of its log of consensus.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// How it and the nodes find each other.
    pub pair: PeerSettings,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {path}: {source}; name another place with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is not a configuration; the source names line and key.
    #[error("in the configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and cause.
        source: Box<toml::de::Error>,
    },
    /// Each value is possible, but not all of them together.
    #[error("in the configuration {path}: {reason}")]
    Conflict {
        /// The file.
        path: PathBuf,
        /// What contradicts what.
        reason: String,
    },
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        match config.pair.conflict(&config.name, SeatKind::Witness) {
            Some(reason) => {
                let reason = format!("pair: {reason}");
                Err(ConfigError::Conflict { path: path.to_owned(), reason })
            }
            None => Ok(config),
        }
    }
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/gemel-witness")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("witness.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_example_is_a_configuration() {
        let example = include_str!("../../deploy/witness.toml");
        let config = parse(example).unwrap();
        assert_eq!(config.state_dir, default_state_dir());
        assert_eq!((config.name.as_str(), config.pair.peers.len()), ("w", 2));
        let cases = [
            (example.replace("name = \"w\"", "name = \"a\""), "same name"),
            (example.replace("name = \"w\"", "nam = \"w\""), "line"),
            (format!("{example}colour = 1\n"), "unknown field"),
            (format!("{example}witness = true\n"), "two nodes and one witness"),
            (example.replace("listen = [\"192.0.2.3:3261\"]", "listen = []"), "listen is empty"),
        ];
        for (text, what) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
