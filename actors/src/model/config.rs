//! What can be configured about the model service. The runtime's configuration fills it in.

use std::{path::PathBuf, time::Duration};

use super::limits;

/// What a model is called that was configured without a name of its own.
pub const DEFAULT_NAME: &str = "default";

/// Settings of the model service: its models, the first of which answers whoever names none.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    /// At least one, at most [`limits::MODELS_MAX`].
    pub models: Vec<NamedModel>,
    /// Names of models that answer, in this order, in the place of one that cannot begin to. Empty: none does.
    pub fallback: Vec<String>,
    /// Whether the one model passes on to its server whichever model a request names.
    pub is_open: bool,
}

/// A model and its name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedModel {
    /// What requests call it.
    pub name: String,
    /// How it is reached.
    pub config: ModelConfig,
}

impl From<ModelConfig> for ServiceConfig {
    fn from(config: ModelConfig) -> Self {
        let models = vec![NamedModel { name: DEFAULT_NAME.to_owned(), config }];
        Self { models, fallback: Vec::new(), is_open: true }
    }
}

impl ServiceConfig {
    /// Checks every model, and that names are there and stand once.
    ///
    /// # Errors
    /// The first mistake.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        let refuse =
            |key, value: String, allowed: String| Err(ModelConfigError { model: None, key, value, allowed });
        if !(1..=limits::MODELS_MAX).contains(&self.models.len()) {
            let allowed = format!("1 to {}", limits::MODELS_MAX);
            return refuse("models", format!("a list of {}", self.models.len()), allowed);
        }
        for (place, NamedModel { name, config }) in self.models.iter().enumerate() {
            if name.is_empty() || self.models[..place].iter().any(|other| other.name == *name) {
                let allowed = "one name for each model".to_owned();
                return refuse("models", format!("a list with `{name}` twice, or without a name"), allowed);
            }
            let of_this = |error| match self.is_open {
                true => error,
                false => ModelConfigError { model: Some(name.clone()), ..error },
            };
            config.validate().map_err(of_this)?;
        }
        for (place, name) in self.fallback.iter().enumerate() {
            if !self.models.iter().any(|model| model.name == *name) || self.fallback[..place].contains(name) {
                let names: Vec<_> = self.models.iter().map(|model| format!("`{}`", model.name)).collect();
                let allowed = format!("{}, each once", names.join(", "));
                return refuse("fallback", format!("a list with `{name}`"), allowed);
            }
        }
        Ok(())
    }
}

/// Settings of one model. [`Default`] answers with the built-in script.
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
    /// Whether it makes embeddings. The script makes none whatever this says.
    pub embeddings: bool,
    /// Times that its server is asked again when it did not begin to answer; at most [`limits::RETRIES_MAX`].
    pub retries_max: u32,
}

/// A back end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackEndKind {
    /// The embedded script: no weights, no network, no language model.
    #[default]
    Script,
    /// Any OpenAI-compatible server.
    OpenAi,
    /// A server of Ollama, by its own API.
    Ollama,
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
            embeddings: true,
            retries_max: limits::RETRIES,
        }
    }
}

/// A setting of the model service that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is {value}; allowed is {allowed}", place(model.as_deref(), key))]
pub struct ModelConfigError {
    /// Which of several models; `None` if it is the section's own key.
    pub model: Option<String>,
    /// Which key, below `model`.
    pub key: &'static str,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

fn place(model: Option<&str>, key: &str) -> String {
    match model {
        Some(model) => format!("`{key}` of the model `{model}`"),
        None => format!("`model.{key}`"),
    }
}

impl ModelConfig {
    /// Checks ranges and combinations, without touching files, environment or network.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        let refuse =
            |key, value: String, allowed: String| Err(ModelConfigError { model: None, key, value, allowed });
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
        if self.retries_max > limits::RETRIES_MAX {
            return refuse(
                "retries_max",
                self.retries_max.to_string(),
                format!("0 to {}", limits::RETRIES_MAX),
            );
        }
        super::http::check_url(&self.url)
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
        let table: [(Change, &str); 10] = [
            (|config| config.retries_max = 11, "`model.retries_max` is 11; allowed is 0 to 10"),
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
    fn several_models_have_names_of_their_own_and_only_they_stand_in() {
        let named = |name: &str| NamedModel { name: name.to_owned(), config: ModelConfig::default() };
        let models = || vec![named("big"), named("small")];
        let config = |fallback: &[&str]| ServiceConfig {
            models: models(),
            fallback: fallback.iter().map(|name| (*name).to_owned()).collect(),
            is_open: false,
        };
        config(&["small", "big"]).validate().unwrap();
        let mut bad_url = config(&[]);
        bad_url.models[1].config.url = "x".to_owned();
        let mut twice = config(&[]);
        twice.models.push(named("big"));
        for (bad, says) in [
            (
                config(&["smal"]),
                "`model.fallback` is a list with `smal`; allowed is `big`, `small`, each once",
            ),
            (config(&["big", "big"]), "`model.fallback` is a list with `big`"),
            (ServiceConfig { models: Vec::new(), ..config(&[]) }, "`model.models` is a list of 0"),
            (twice, "with `big` twice"),
            (bad_url, "`url` of the model `small` is `x`"),
        ] {
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
