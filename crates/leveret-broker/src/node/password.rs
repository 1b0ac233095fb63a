//! Passwords, as RabbitMQ hashes and exports them.

use std::fmt;
use std::hint::black_box;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};
use smallvec::SmallVec;
use subtle::ConstantTimeEq;

use crate::Shortened;

/// Bytes of salt. RabbitMQ: passwords, "How password hashing works".
pub const SALT_BYTES: usize = 4;

/// How a password is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashingAlgorithm {
    /// SHA-256 once over salt and password. RabbitMQ's default.
    #[default]
    Sha256,
    /// SHA-512 once over salt and password.
    Sha512,
}

impl HashingAlgorithm {
    /// As definitions name it.
    pub fn as_str(self) -> &'static str {
        match self {
            HashingAlgorithm::Sha256 => "rabbit_password_hashing_sha256",
            HashingAlgorithm::Sha512 => "rabbit_password_hashing_sha512",
        }
    }

    /// The one that definitions name so.
    pub fn parse(name: &str) -> Result<Self, InvalidHash> {
        match name {
            "rabbit_password_hashing_sha256" => Ok(HashingAlgorithm::Sha256),
            "rabbit_password_hashing_sha512" => Ok(HashingAlgorithm::Sha512),
            other => Err(InvalidHash::Algorithm(other.into())),
        }
    }

    fn digest(self, salt: [u8; SALT_BYTES], password: &[u8]) -> SmallVec<[u8; 64]> {
        match self {
            HashingAlgorithm::Sha256 => {
                SmallVec::from_slice(&Sha256::new().chain_update(salt).chain_update(password).finalize())
            }
            HashingAlgorithm::Sha512 => {
                SmallVec::from_slice(&Sha512::new().chain_update(salt).chain_update(password).finalize())
            }
        }
    }

    fn digest_bytes(self) -> usize {
        match self {
            HashingAlgorithm::Sha256 => 32,
            HashingAlgorithm::Sha512 => 64,
        }
    }
}

/// A password that nobody can read any more.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    algorithm: HashingAlgorithm,
    salt: [u8; SALT_BYTES],
    digest: SmallVec<[u8; 64]>,
}

/// A hash that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHash {
    /// It is not one of those that there are.
    #[error(
        "hashing algorithm '{}' is not supported; there are rabbit_password_hashing_sha256 and \
         rabbit_password_hashing_sha512",
        Shortened(.0)
    )]
    Algorithm(String),
    /// It is not the base64 of salt and digest.
    #[error("the hash of a password must be the base64 of 4 bytes of salt and {expected} bytes of {algorithm}")]
    Malformed {
        /// Bytes of the digest.
        expected: usize,
        /// The name of its algorithm.
        algorithm: &'static str,
    },
}

impl PasswordHash {
    /// Hashes a password. The salt is to come from the operating system.
    pub fn new(password: &[u8], salt: [u8; SALT_BYTES]) -> Self {
        Self::of(HashingAlgorithm::default(), password, salt)
    }

    /// The same in a way of one's choice.
    pub fn of(algorithm: HashingAlgorithm, password: &[u8], salt: [u8; SALT_BYTES]) -> Self {
        PasswordHash { algorithm, salt, digest: algorithm.digest(salt, password) }
    }

    /// What a password is compared with that is wrong in any case.
    pub(super) fn of_nobody() -> Self {
        let algorithm = HashingAlgorithm::default();
        let digest = SmallVec::from_elem(0, algorithm.digest_bytes());
        PasswordHash { algorithm, salt: [0; SALT_BYTES], digest }
    }

    /// Takes a hash as RabbitMQ exports it: the base64 of salt and digest.
    pub fn from_base64(algorithm: HashingAlgorithm, text: &str) -> Result<Self, InvalidHash> {
        let malformed =
            || InvalidHash::Malformed { expected: algorithm.digest_bytes(), algorithm: algorithm.as_str() };
        let bytes = STANDARD.decode(text).map_err(|_| malformed())?;
        Self::from_bytes(algorithm, &bytes).ok_or_else(malformed)
    }

    /// Takes salt and digest.
    pub(crate) fn from_bytes(algorithm: HashingAlgorithm, bytes: &[u8]) -> Option<Self> {
        let (salt, digest) = bytes.split_first_chunk::<SALT_BYTES>()?;
        let is_whole = digest.len() == algorithm.digest_bytes();
        is_whole.then(|| PasswordHash { algorithm, salt: *salt, digest: SmallVec::from_slice(digest) })
    }

    /// Salt and digest.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [&self.salt[..], &self.digest].concat()
    }

    /// As definitions have it.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.to_bytes())
    }

    /// How it was hashed.
    pub fn algorithm(&self) -> HashingAlgorithm {
        self.algorithm
    }

    /// Whether this is the password, in a time that does not tell how much of it is right.
    pub fn verify(&self, password: &[u8]) -> bool {
        // Both ways, so that the time does not tell by which of them, or that there is nobody of that name.
        let sha256 = black_box(HashingAlgorithm::Sha256.digest(self.salt, password));
        let sha512 = black_box(HashingAlgorithm::Sha512.digest(self.salt, password));
        let digest = match self.algorithm {
            HashingAlgorithm::Sha256 => sha256,
            HashingAlgorithm::Sha512 => sha512,
        };
        digest.ct_eq(&self.digest).into()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RabbitMQ's documentation of passwords: `test12` with the salt `CAD5089B`.
    #[test]
    fn a_hash_is_the_one_of_rabbitmqs_documentation() {
        let hash = PasswordHash::new(b"test12", [0x90, 0x8D, 0xC6, 0x0A]);
        assert_eq!(hash.to_base64(), "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
        assert!(hash.verify(b"test12"));
        assert!(!hash.verify(b"test1") && !hash.verify(b""));
        assert_eq!(PasswordHash::from_base64(HashingAlgorithm::Sha256, &hash.to_base64()), Ok(hash));
    }

    #[test]
    fn a_hash_of_another_length_or_algorithm_is_refused() {
        let sha256 = PasswordHash::new(b"x", [1; 4]).to_base64();
        let refused = PasswordHash::from_base64(HashingAlgorithm::Sha512, &sha256).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the hash of a password must be the base64 of 4 bytes of salt and 64 bytes of \
             rabbit_password_hashing_sha512"
        );
        assert!(PasswordHash::from_base64(HashingAlgorithm::Sha256, "no base64!").is_err());
        assert!(HashingAlgorithm::parse("rabbit_password_hashing_md5").is_err());
        let sha512 = HashingAlgorithm::parse("rabbit_password_hashing_sha512").unwrap();
        let bytes = [&[1; 4][..], &sha512.digest([1; 4], b"x")].concat();
        assert!(PasswordHash::from_bytes(sha512, &bytes).unwrap().verify(b"x"));
    }
}
