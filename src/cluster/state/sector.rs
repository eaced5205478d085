//! Sizes of a volume's sectors, as hosts are told and as they are recorded.

use serde::{Deserialize, Serialize};

/// Logical and physical block, as hosts are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RecordedSector", into = "RecordedSector")]
pub enum SectorSize {
    /// 512 bytes, on physical blocks of 4096.
    Emulated512,
    /// 512 bytes, and physical blocks are said to be as small, for hosts that want no other.
    Native512,
    /// 4096 bytes.
    Native4096,
}

impl SectorSize {
    /// Bytes of a logical block.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            Self::Emulated512 | Self::Native512 => 512,
            Self::Native4096 => 4096,
        }
    }

    /// Bytes of a physical block.
    #[must_use]
    pub fn physical_bytes(self) -> u32 {
        match self {
            Self::Native512 => 512,
            Self::Emulated512 | Self::Native4096 => 4096,
        }
    }

    /// The one with these sizes.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(bytes: u32, physical_bytes: u32) -> Result<Self, BadSectorSize> {
        match (bytes, physical_bytes) {
            (512, 4096) => Ok(Self::Emulated512),
            (512, 512) => Ok(Self::Native512),
            (4096, 4096) => Ok(Self::Native4096),
            _ => Err(BadSectorSize { bytes, physical_bytes }),
        }
    }
}

/// How a sector size is written: its bytes, and a name where these do not say all.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum RecordedSector {
    Bytes(u32),
    Named(NamedSector),
}

#[derive(Clone, Serialize, Deserialize)]
enum NamedSector {
    #[serde(rename = "512n")]
    Native512,
}

impl TryFrom<RecordedSector> for SectorSize {
    type Error = BadSectorSize;
    fn try_from(recorded: RecordedSector) -> Result<Self, BadSectorSize> {
        match recorded {
            RecordedSector::Bytes(bytes) => Self::new(bytes, 4096),
            RecordedSector::Named(NamedSector::Native512) => Ok(Self::Native512),
        }
    }
}

impl From<SectorSize> for RecordedSector {
    fn from(sector: SectorSize) -> Self {
        match sector {
            SectorSize::Native512 => Self::Named(NamedSector::Native512),
            SectorSize::Emulated512 | SectorSize::Native4096 => Self::Bytes(sector.bytes()),
        }
    }
}

/// A sector size that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sector has 512 or 4096 bytes, not {bytes} with {physical_bytes} physical")]
pub struct BadSectorSize {
    /// Bytes asked for.
    pub bytes: u32,
    /// Bytes of the physical block asked for.
    pub physical_bytes: u32,
}
