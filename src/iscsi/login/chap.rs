//! CHAP (RFC 7143 section 12.1.3): algorithms, challenge and response.

use sha3::digest::Digest;
use subtle::ConstantTimeEq;

use crate::iscsi::policy::ChapSecret;

/// Longest challenge in bytes (section 12.1.3).
pub(super) const MAXIMUM_CHALLENGE_LENGTH: usize = 1024;
/// Longest response of any algorithm here, in bytes.
pub(super) const MAXIMUM_RESPONSE_LENGTH: usize = 32;

/// Algorithms by their number in IANA's PPP registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3 = 8,
}

impl Algorithm {
    pub(super) fn of_number(number: u32) -> Option<Self> {
        match number {
            5 => Some(Self::Md5),
            6 => Some(Self::Sha1),
            7 => Some(Self::Sha256),
            8 => Some(Self::Sha3),
            _ => None,
        }
    }

    pub(super) fn number_text(self) -> &'static str {
        match self {
            Self::Md5 => "5",
            Self::Sha1 => "6",
            Self::Sha256 => "7",
            Self::Sha3 => "8",
        }
    }

    /// Bytes of a response, and of our challenges: section 12.1.3 wants them at least that long.
    pub(super) fn length(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3 => 32,
        }
    }

    /// The response to a challenge: H(identifier, secret, challenge).
    pub(super) fn response(self, identifier: u8, secret: &ChapSecret, challenge: &[u8]) -> Vec<u8> {
        fn hash<H: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut hash = H::new();
            parts.into_iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        let parts = [&[identifier], secret.reveal(), challenge];
        match self {
            Self::Md5 => hash::<md5::Md5>(parts),
            Self::Sha1 => hash::<sha1::Sha1>(parts),
            Self::Sha256 => hash::<sha2::Sha256>(parts),
            Self::Sha3 => hash::<sha3::Sha3_256>(parts),
        }
    }
}

/// A challenge that we have sent, waiting for its response.
#[derive(Debug)]
pub(super) struct Challenge {
    pub(super) algorithm: Algorithm,
    pub(super) identifier: u8,
    pub(super) bytes: Vec<u8>,
}

impl Challenge {
    /// Whether `response` is what a holder of `secret` answers; in a time that does not depend on
    /// where they differ.
    pub(super) fn accepts(&self, secret: &ChapSecret, response: &[u8]) -> bool {
        let expected = self.algorithm.response(self.identifier, secret, &self.bytes);
        expected.ct_eq(response).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_match_independent_vectors() {
        // Made with Python's hashlib from identifier 0x27, the secret and challenge below.
        let secret = ChapSecret::new("a secret of some length");
        let challenge: Vec<u8> = (0..16).collect();
        let response = |algorithm: Algorithm| {
            crate::iscsi::text::binary_text(&algorithm.response(0x27, &secret, &challenge))
        };
        assert_eq!(response(Algorithm::Md5), "0x572f18bd02f60f7050425e51ae526b4d");
        assert_eq!(response(Algorithm::Sha1), "0xb61f98cf58eed2c3f39b9ee0127391e84ab54f37");
        assert_eq!(
            response(Algorithm::Sha256),
            "0x250d04866063c198fcab9644858806fc4137a36f200dfb0168aecc07276fb790"
        );
        assert_eq!(
            response(Algorithm::Sha3),
            "0xae175432c42356426ab7c4d39936535bc2b23db13003f02420c8c2fb67903195"
        );
    }

    #[test]
    fn only_the_right_response_is_accepted() {
        let secret = ChapSecret::new("secret");
        for number in 5..=8 {
            let algorithm = Algorithm::of_number(number).unwrap();
            let challenge = Challenge { algorithm, identifier: 9, bytes: vec![7; 16] };
            let right = algorithm.response(9, &secret, &[7; 16]);
            assert_eq!(right.len(), algorithm.length());
            assert!(challenge.accepts(&secret, &right));
            assert!(!challenge.accepts(&secret, &right[1..]));
            assert!(!challenge.accepts(&secret, &[]));
            assert!(!challenge.accepts(&ChapSecret::new("Secret"), &right));
            for bit in 0..right.len() * 8 {
                let mut wrong = right.clone();
                wrong[bit / 8] ^= 1 << (bit % 8);
                assert!(!challenge.accepts(&secret, &wrong));
            }
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert!(!format!("{:?}", ChapSecret::new("topsecret")).contains("topsecret"));
    }
}
