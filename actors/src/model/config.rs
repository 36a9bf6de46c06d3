//! What can be configured about the model service.

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;
use zeroize::Zeroize;

use super::limits;

/// Section `model` of the configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Which back end answers.
    pub back_end: BackEndKind,
    /// Completions at once; 1 to [`limits::CONCURRENT_MAX`].
    pub concurrent_max: usize,
    /// Completions waiting for their turn; 0 to [`limits::WAITING_MAX`]. A further one gets `busy`.
    pub waiting_max: usize,
    /// Settings of the embedded script.
    pub script: ScriptConfig,
    /// Settings for an OpenAI-compatible server.
    pub openai: OpenAiConfig,
}

/// A back end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackEndKind {
    /// The embedded script: no weights, no network, no language model.
    #[default]
    Script,
    /// Any OpenAI-compatible server.
    #[serde(rename = "openai")]
    OpenAi,
}

/// Section `model.script`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScriptConfig {
    /// A script that replaces the built-in one; `None` is the built-in one.
    pub file: Option<PathBuf>,
    /// Milliseconds between two words, 0 to 10000; 0 says everything at once.
    pub pause_ms: u64,
}

/// Section `model.openai`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiConfig {
    /// Where the server's API begins, for example `http://127.0.0.1:11434/v1` for Ollama.
    pub url: String,
    /// Which model; `None` takes the first that the server lists.
    pub model: Option<String>,
    /// The API key itself. At most one of the three ways to give it may be used.
    pub api_key: Option<Secret>,
    /// Environment variable that holds the API key.
    pub api_key_env: Option<String>,
    /// File that holds the API key and nothing else.
    pub api_key_file: Option<PathBuf>,
    /// Seconds that connecting may take, 1 to 3600.
    pub connect_timeout_s: u64,
    /// Seconds that the server may be silent, 1 to 3600.
    pub read_timeout_s: u64,
    /// Randomness, 0 to 2; `None` leaves it to the server.
    pub temperature: Option<f32>,
    /// Longest answer in tokens; `None` leaves it to the server.
    pub tokens_max: Option<u32>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            back_end: BackEndKind::default(),
            concurrent_max: limits::CONCURRENT,
            waiting_max: limits::WAITING,
            script: ScriptConfig::default(),
            openai: OpenAiConfig::default(),
        }
    }
}

impl Default for OpenAiConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:11434/v1".to_owned(),
            model: None,
            api_key: None,
            api_key_env: None,
            api_key_file: None,
            connect_timeout_s: limits::CONNECT_TIMEOUT.as_secs(),
            read_timeout_s: limits::READ_TIMEOUT.as_secs(),
            temperature: None,
            tokens_max: None,
        }
    }
}

/// A setting of the model service that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`model.{key}` is {value}; allowed is {allowed}")]
pub struct ModelConfigError {
    /// Which key, below `model`.
    pub key: &'static str,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl ModelConfig {
    /// Checks ranges and combinations, without touching files, environment or network.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        let in_range = |key, value: u64, least: u64, most: u64| {
            let allowed = || format!("{least} to {most}");
            ((least..=most).contains(&value)).then_some(()).ok_or_else(|| ModelConfigError {
                key,
                value: value.to_string(),
                allowed: allowed(),
            })
        };
        let timeout_max = limits::TIMEOUT_MAX.as_secs();
        in_range("concurrent_max", self.concurrent_max as u64, 1, limits::CONCURRENT_MAX as u64)?;
        in_range("waiting_max", self.waiting_max as u64, 0, limits::WAITING_MAX as u64)?;
        in_range("script.pause_ms", self.script.pause_ms, 0, limits::SCRIPT_PAUSE_MAX.as_millis() as u64)?;
        in_range("openai.connect_timeout_s", self.openai.connect_timeout_s, 1, timeout_max)?;
        in_range("openai.read_timeout_s", self.openai.read_timeout_s, 1, timeout_max)?;
        let keys = [
            self.openai.api_key.is_some(),
            self.openai.api_key_env.is_some(),
            self.openai.api_key_file.is_some(),
        ];
        if keys.into_iter().filter(|given| *given).count() > 1 {
            return Err(ModelConfigError {
                key: "openai.api_key",
                value: "given in more than one way".to_owned(),
                allowed: "one of `api_key`, `api_key_env` and `api_key_file`".to_owned(),
            });
        }
        if let Some(temperature) = self.openai.temperature.filter(|given| !(0.0..=2.0).contains(given)) {
            return Err(ModelConfigError {
                key: "openai.temperature",
                value: temperature.to_string(),
                allowed: "0 to 2".to_owned(),
            });
        }
        super::openai::check_url(&self.openai.url)
    }

    /// The pause between two words of the script.
    pub(super) fn script_pause(&self) -> Duration {
        Duration::from_millis(self.script.pause_ms)
    }
}

/// A text that is never shown and is wiped when dropped.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever has to send it.
    pub fn expose(&self) -> &str {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> ModelConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_defaults_are_valid_and_need_no_network() {
        let config = config("");
        assert_eq!(config, ModelConfig::default());
        assert_eq!(config.back_end, BackEndKind::Script);
        config.validate().unwrap();
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_what_is_allowed() {
        for (text, says) in [
            ("concurrent_max = 0", "`model.concurrent_max` is 0; allowed is 1 to 1024"),
            ("waiting_max = 70000", "`model.waiting_max` is 70000"),
            ("script.pause_ms = 10001", "0 to 10000"),
            ("openai.read_timeout_s = 0", "1 to 3600"),
            ("openai.temperature = 3.0", "0 to 2"),
            ("openai.api_key = 'a'\nopenai.api_key_env = 'B'", "more than one way"),
            ("openai.url = 'localhost:11434'", "`model.openai.url` is `localhost:11434`"),
            ("openai.url = 'ftp://x/v1'", "http:// or https://"),
            ("openai.url = 'http://me:hidden@x/v1'", "without user and password"),
        ] {
            let message = config(text).validate().unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
            assert!(!message.contains("hidden"), "{message}");
        }
        assert!(toml::from_str::<ModelConfig>("bakc_end = 'script'").is_err());
        assert!(toml::from_str::<ModelConfig>("back_end = 'gpt'").is_err());
    }

    #[test]
    fn an_api_key_is_never_shown() {
        let config = config("openai.api_key = 'sk-very-secret'");
        assert!(!format!("{config:?}").contains("very"));
        assert_eq!(config.openai.api_key.unwrap().expose(), "sk-very-secret");
    }
}
