//! The key of a model's API: from a file or the environment, shown to nobody but its server.

use std::{fmt, io::Read};

use zeroize::Zeroize;

use super::{config::ModelConfig, error::BackEndError, limits};

/// A text that is never shown and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever has to send it.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The key that the configuration names; `None` if it names none.
pub(super) fn read(config: &ModelConfig) -> Result<Option<Secret>, BackEndError> {
    let refuse = |from: String, problem: String| Err(BackEndError::Key { from, problem });
    let (from, text) = if let Some(variable) = &config.api_key_env {
        let from = format!("the environment variable `{variable}`");
        match std::env::var(variable) {
            Ok(text) => (from, Secret::new(text)),
            Err(error) => return refuse(from, error.to_string()),
        }
    } else if let Some(file) = &config.api_key_file {
        let from = format!("the file `{}`", file.display());
        let mut text = String::new();
        let limit = limits::KEY_FILE_BYTES_MAX as u64 + 1;
        match std::fs::File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text)) {
            Ok(read) if read as u64 == limit => return refuse(from, "it is too long for a key".to_owned()),
            Ok(_) => (from, Secret::new(text)),
            Err(error) => return refuse(from, error.to_string()),
        }
    } else {
        return Ok(None);
    };
    let trimmed = text.expose().trim();
    if trimmed.is_empty() || !trimmed.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(from, "it is empty or holds blanks or characters that no key has".to_owned());
    }
    Ok(Some(Secret::new(trimmed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        assert!(!format!("{:?}", Secret::new("sk-very-secret")).contains("very"));
    }

    #[test]
    fn a_key_comes_from_a_file_or_the_reason_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let config = ModelConfig { api_key_file: Some(file.clone()), ..ModelConfig::default() };
        assert!(matches!(read(&config), Err(BackEndError::Key { .. })));
        std::fs::write(&file, "sk-1\n").unwrap();
        assert_eq!(read(&config).unwrap().unwrap().expose(), "sk-1");
        for bad in [" \n".to_owned(), "two words".to_owned(), "x".repeat(5000)] {
            std::fs::write(&file, bad).unwrap();
            assert!(matches!(read(&config), Err(BackEndError::Key { .. })));
        }
        let config =
            ModelConfig { api_key_env: Some("INTERLOCK_NOT_SET".to_owned()), ..ModelConfig::default() };
        assert!(read(&config).unwrap_err().to_string().contains("`INTERLOCK_NOT_SET`"));
        assert!(read(&ModelConfig::default()).unwrap().is_none());
    }
}
