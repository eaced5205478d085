//! Passwords: argon2id with a salt of its own for each (RFC 9106), computed apart from the event loop and one at a time,
//! so that nobody can fill the node's memory by signing in.

use argon2::Argon2;
use argon2::password_hash::phc;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use crate::cluster::state::user::PasswordHash;

/// Why a password can't be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Too short or too long.
    #[error("a password has {SHORTEST} to {LONGEST} characters")]
    Length,
    /// The hash could not be computed.
    #[error("the password cannot be kept: {0}")]
    Failed(String),
}

/// What is kept of a password.
///
/// # Errors
/// [`PasswordError`].
pub async fn hash(password: &str) -> Result<PasswordHash, PasswordError> {
    if !(SHORTEST..=LONGEST).contains(&password.chars().count()) {
        return Err(PasswordError::Length);
    }
    let password = password.to_owned();
    let hashed = apart(move || {
        let hashed: Result<phc::PasswordHash, _> = Argon2::default().hash_password(password.as_bytes());
        hashed.map(|hash| PasswordHash::new(hash.to_string())).map_err(|error| error.to_string())
    });
    hashed.await.and_then(|hashed| hashed).map_err(PasswordError::Failed)
}

/// Whether it is the password of which `hash` was kept.
pub async fn is_right(password: &str, hash: &PasswordHash) -> bool {
    if password.len() > 4 * LONGEST {
        return false;
    }
    let (password, hash) = (password.to_owned(), hash.clone());
    let compared = apart(move || {
        let parsed = phc::PasswordHash::new(hash.expose());
        parsed.is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
    });
    compared.await.unwrap_or(false)
}

/// Takes as long as a comparison does, for a user who does not exist.
pub async fn waste(password: &str) {
    let filled: String = password.chars().chain(".".repeat(SHORTEST).chars()).take(LONGEST).collect();
    // What it is nobody wants to know.
    let _ = hash(&filled).await;
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let _turn = TURN.acquire().await.map_err(|error| error.to_string())?;
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

static TURN: Semaphore = Semaphore::const_new(1);
/// NIST SP 800-63B asks for 8 at least.
const SHORTEST: usize = 10;
const LONGEST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_itself_is_right() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let kept = hash("correct horse").await.unwrap();
            assert!(kept.expose().starts_with("$argon2id$v=19$m="), "{}", kept.expose());
            assert_ne!(hash("correct horse").await.unwrap(), kept, "each has a salt of its own");
            assert!(is_right("correct horse", &kept).await);
            for wrong in ["correct horse ", "", &"x".repeat(100_000)] {
                assert!(!is_right(wrong, &kept).await);
            }
            assert!(!is_right("x", &PasswordHash::new("$argon2id$nonsense".to_owned())).await);
            assert_eq!(hash("too short").await, Err(PasswordError::Length));
            assert_eq!(hash(&"x".repeat(257)).await, Err(PasswordError::Length));
        });
    }
}
