//! The token that every request but liveness and the page must carry.

use std::{fmt, path::Path};

use interlock_bus::{
    crypto,
    keys::{KeyError, private_file},
};
use zeroize::Zeroizing;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// What is kept of the token: a digest, which is compared in constant time.
#[derive(Clone)]
pub struct Token {
    digest: [u8; crypto::DIGEST_BYTES],
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token")
    }
}

impl Token {
    /// Reads the token's file, or makes a new one (0600). The token stays the same from start to start; to get another
    /// one, delete the file.
    ///
    /// # Errors
    /// [`KeyError`]: others can read the file, or it is damaged.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            let bytes = Zeroizing::new(crypto::random::<TOKEN_BYTES>());
            let mut text: Zeroizing<String> =
                Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
            text.push('\n');
            private_file::replace(path, text.as_bytes())?;
        }
        let text = private_file::read_text(path)?;
        let token = text.trim();
        if token.len() != 2 * TOKEN_BYTES || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(KeyError::Damaged {
                path: path.to_owned(),
                problem: "it is no token of 64 hexadecimal digits; delete it to get a new one".to_owned(),
            });
        }
        Ok(Self { digest: crypto::digest(token.as_bytes()) })
    }

    /// Whether this is the token.
    pub(super) fn is(&self, token: &[u8]) -> bool {
        crypto::equal_in_constant_time(&crypto::digest(token), &self.digest)
    }
}

/// What follows `Bearer` in a header.
pub(super) fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_bearer_of_the_token_is_permitted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway-token");
        let token = Token::load_or_create(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.trim();
        let permits = |header: &[u8]| bearer(header).is_some_and(|bearer| token.is(bearer));
        assert!(permits(format!("Bearer {text}").as_bytes()));
        assert!(permits(format!("bearer {text} ").as_bytes()));
        assert!(Token::load_or_create(&path).unwrap().is(text.as_bytes()));
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Basic x",
            &format!("Basics {text}"),
            &format!("Bearer {}", &text[1..]),
            text,
        ] {
            assert!(!permits(bad.as_bytes()), "{bad}");
        }
        assert!(!permits(&[0xff; 80]));
        assert_eq!(format!("{token:?}"), "Token");
    }

    #[test]
    fn a_token_that_others_can_read_or_that_is_damaged_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway-token");
        private_file::replace(&path, b"short").unwrap();
        assert!(matches!(Token::load_or_create(&path), Err(KeyError::Damaged { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Token::load_or_create(&path), Err(KeyError::Exposed { .. })));
    }
}
