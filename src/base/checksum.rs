//! The two checksums, as distinct types because they use different polynomials.
//!
//! [`Crc32`] (ISO-HDLC polynomial, `crc32fast`) protects blocks on disk and on the mirror's wire;
//! [`Crc32c`] (Castagnoli) is the iSCSI digest of RFC 7143 section 13.1.

use super::units::BlockIdentity;

/// CRC-32 of stored data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Crc32(pub u32);

impl Crc32 {
    /// Checksum of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(crc32fast::hash(data))
    }

    /// Checksum of what `pieces` hold one after the other.
    #[must_use]
    pub fn of_pieces<T: AsRef<[u8]>>(pieces: &[T]) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        pieces.iter().for_each(|piece| hasher.update(piece.as_ref()));
        Self(hasher.finalize())
    }

    /// This checksum of a block's data, bound to the block's identity. Binding twice gives the
    /// data's own checksum back.
    #[must_use]
    pub fn bind(self, identity: &BlockIdentity) -> Self {
        let mut bytes = [0u8; 24];
        bytes[0..4].copy_from_slice(&identity.volume.0.to_le_bytes());
        bytes[4..8].copy_from_slice(&identity.version.epoch.to_le_bytes());
        bytes[8..16].copy_from_slice(&identity.address.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&identity.version.sequence.to_le_bytes());
        Self(self.0 ^ crc32fast::hash(&bytes))
    }
}

/// CRC-32C of an iSCSI header or data segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Crc32c(pub u32);

impl Crc32c {
    /// Digest of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(crc32c::crc32c(data))
    }

    /// Digest of what this digest covered, followed by `data`.
    #[must_use]
    pub fn append(self, data: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::{BlockAddress, Version, VolumeId};

    #[test]
    fn binding_tells_identities_apart_and_is_its_own_inverse() {
        let identity = |volume, address, sequence| BlockIdentity {
            volume: VolumeId(volume),
            address: BlockAddress(address),
            version: Version { epoch: 1, sequence },
        };
        let data = Crc32::of(&[0u8; 4096]);
        let bound = data.bind(&identity(1, 2, 3));
        assert_ne!(bound, data.bind(&identity(2, 2, 3)));
        assert_ne!(bound, data.bind(&identity(1, 3, 3)));
        assert_ne!(bound, data.bind(&identity(1, 2, 4)));
        assert_eq!(bound.bind(&identity(1, 2, 3)), data);
    }

    #[test]
    fn digest_matches_the_standard_example() {
        // RFC 3720 appendix B.4: 32 bytes of zeros.
        assert_eq!(Crc32c::of(&[0u8; 32]).0, 0x8a91_36aa);
        assert_eq!(Crc32c::of(&[0u8; 16]).append(&[0u8; 16]), Crc32c::of(&[0u8; 32]));
    }
}
