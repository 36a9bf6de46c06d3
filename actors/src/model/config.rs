//! What can be configured about the model service. The runtime's configuration fills it in.

use std::{fmt, path::PathBuf, time::Duration};

use zeroize::Zeroize;

use super::limits;

/// Settings of the model service. [`Default`] answers with the built-in script.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which back end answers.
    pub back_end: BackEndKind,
    /// Completions at once; 1 to [`limits::CONCURRENT_MAX`].
    pub concurrent_max: usize,
    /// Completions waiting for their turn; at most [`limits::WAITING_MAX`]. A further one gets `busy`.
    pub waiting_max: usize,
    /// A script that replaces the built-in one; `None` is the built-in one.
    pub script: Option<PathBuf>,
    /// Pause between two words of the script, at most [`limits::SCRIPT_PAUSE_MAX`]; zero says
    /// everything at once.
    pub script_pause: Duration,
    /// Where an OpenAI-compatible server's API begins, for example `http://127.0.0.1:11434/v1` for Ollama.
    pub url: String,
    /// Which model of that server; `None` takes the first that it lists.
    pub model: Option<String>,
    /// Environment variable that holds the API key; `None` sends none.
    pub api_key_env: Option<String>,
    /// File that holds the API key and nothing else; `None` sends none. At most one of the two.
    pub api_key_file: Option<PathBuf>,
    /// How long connecting may take, 1 ms to [`limits::TIMEOUT_MAX`].
    pub connect_timeout: Duration,
    /// How long the server may be silent, 1 ms to [`limits::TIMEOUT_MAX`].
    pub read_timeout: Duration,
    /// Randomness, 0 to 2; `None` leaves it to the server.
    pub temperature: Option<f32>,
    /// Longest answer in tokens; `None` leaves it to the server.
    pub tokens_max: Option<u32>,
}

/// A back end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackEndKind {
    /// The embedded script: no weights, no network, no language model.
    #[default]
    Script,
    /// Any OpenAI-compatible server.
    OpenAi,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            back_end: BackEndKind::default(),
            concurrent_max: limits::CONCURRENT,
            waiting_max: limits::WAITING,
            script: None,
            script_pause: Duration::ZERO,
            url: "http://127.0.0.1:11434/v1".to_owned(),
            model: None,
            api_key_env: None,
            api_key_file: None,
            connect_timeout: limits::CONNECT_TIMEOUT,
            read_timeout: limits::READ_TIMEOUT,
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
        let refuse = |key, value: String, allowed: String| Err(ModelConfigError { key, value, allowed });
        if !(1..=limits::CONCURRENT_MAX).contains(&self.concurrent_max) {
            let allowed = format!("1 to {}", limits::CONCURRENT_MAX);
            return refuse("concurrent_max", self.concurrent_max.to_string(), allowed);
        }
        if self.waiting_max > limits::WAITING_MAX {
            return refuse(
                "waiting_max",
                self.waiting_max.to_string(),
                format!("0 to {}", limits::WAITING_MAX),
            );
        }
        if self.script_pause > limits::SCRIPT_PAUSE_MAX {
            let allowed = format!("0 to {:?}", limits::SCRIPT_PAUSE_MAX);
            return refuse("script_pause", format!("{:?}", self.script_pause), allowed);
        }
        for (key, value) in [("connect_timeout", self.connect_timeout), ("read_timeout", self.read_timeout)] {
            let least = Duration::from_millis(1);
            if !(least..=limits::TIMEOUT_MAX).contains(&value) {
                return refuse(key, format!("{value:?}"), format!("{least:?} to {:?}", limits::TIMEOUT_MAX));
            }
        }
        if self.api_key_env.is_some() && self.api_key_file.is_some() {
            let allowed = "one of `api_key_env` and `api_key_file`".to_owned();
            return refuse("api_key_env", "given beside `api_key_file`".to_owned(), allowed);
        }
        if let Some(temperature) = self.temperature.filter(|given| !(0.0..=2.0).contains(given)) {
            return refuse("temperature", temperature.to_string(), "0 to 2".to_owned());
        }
        super::openai::check_url(&self.url)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_need_no_network() {
        ModelConfig::default().validate().unwrap();
        assert_eq!(ModelConfig::default().back_end, BackEndKind::Script);
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_what_is_allowed() {
        type Change = fn(&mut ModelConfig);
        let table: [(Change, &str); 9] = [
            (|config| config.concurrent_max = 0, "`model.concurrent_max` is 0; allowed is 1 to 1024"),
            (|config| config.waiting_max = 70_000, "`model.waiting_max` is 70000"),
            (|config| config.script_pause = Duration::from_secs(11), "`model.script_pause` is 11s"),
            (|config| config.read_timeout = Duration::ZERO, "`model.read_timeout` is 0ns; allowed is 1ms to"),
            (|config| config.temperature = Some(f32::NAN), "0 to 2"),
            (
                |config| {
                    config.api_key_env = Some("A".to_owned());
                    config.api_key_file = Some("b".into());
                },
                "given beside `api_key_file`",
            ),
            (|config| config.url = "localhost:11434".to_owned(), "`model.url` is `localhost:11434`"),
            (|config| config.url = "ftp://x/v1".to_owned(), "http:// or https://"),
            (|config| config.url = "http://me:hidden@x/v1".to_owned(), "without user and password"),
        ];
        for (change, says) in table {
            let mut config = ModelConfig::default();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(says) && !message.contains("hidden"), "{message}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert!(!format!("{:?}", Secret::new("sk-very-secret")).contains("very"));
    }
}
