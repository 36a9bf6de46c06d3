//! `[[model.models]]`: several models by name.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use interlock_actors::model::limits;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::{BackEnd, Held, Origin, duration};

/// `[[model.models]]`: a model by name. What is left out is as in `[model]`, but for where it is and its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedModelSection {
    /// What requests call it.
    pub name: String,
    /// What answers.
    pub back_end: BackEnd,
    /// Base URL of its server; empty is Ollama's on this machine.
    #[serde(default)]
    pub url: String,
    /// What its server calls it.
    #[serde(default)]
    pub model: String,
    /// File with the API key; empty is none.
    #[serde(default)]
    pub api_key_file: PathBuf,
    /// Environment variable with the API key; empty is none.
    #[serde(default)]
    pub api_key_env: String,
    /// Script of the script engine; empty is the built-in one.
    #[serde(default)]
    pub script: PathBuf,
    /// Whether it makes embeddings.
    #[serde(default)]
    pub embeddings: bool,
    /// For connecting to its server.
    #[serde(default, with = "duration::optional")]
    pub connect_timeout: Option<Duration>,
    /// For a server that is silent.
    #[serde(default, with = "duration::optional")]
    pub read_timeout: Option<Duration>,
    /// Longest answer in tokens; zero leaves it to the server.
    #[serde(default)]
    pub tokens_max: Option<u32>,
    /// Requests at the same time.
    #[serde(default)]
    pub concurrent_max: Option<usize>,
    /// Requests that wait.
    #[serde(default)]
    pub waiting_max: Option<usize>,
    /// Times that its server is asked again.
    #[serde(default)]
    pub retries_max: Option<u32>,
}

/// Models by name: each name once, nothing of a single model beside them, and only they stand in.
pub(super) fn check(settings: &BTreeMap<String, Held>, refuse: &mut impl FnMut(&Held, &str, String)) {
    let list =
        |path: &str| settings.get(path).and_then(|held| held.value.as_array().map(|list| (held, list)));
    let Some((held, models)) = list("model.models") else { return };
    let names: Vec<&str> =
        models.iter().filter_map(|model| model.get("name")).filter_map(Value::as_str).collect();
    for (place, name) in names.iter().enumerate() {
        if names[..place].contains(name) {
            refuse(
                held,
                "model.models",
                format!("`model.models` has `{name}` twice; each needs a name of its own"),
            );
        }
    }
    if models.len() > limits::MODELS_MAX {
        let (count, most) = (models.len(), limits::MODELS_MAX);
        refuse(held, "model.models", format!("`model.models` has {count} models; allowed are {most}"));
    }
    if let Some((held, fallback)) = list("model.fallback") {
        for (place, name) in fallback.iter().enumerate() {
            let is_known = name.as_str().is_some_and(|name| names.contains(&name));
            if !is_known || fallback[..place].contains(name) {
                let text = format!(
                    "`model.fallback` has {name}; allowed: names of `[[model.models]]`, each once, of which there are [{}]",
                    names.join(", ")
                );
                refuse(held, "model.fallback", text);
            }
        }
    }
    for key in ["back_end", "url", "model", "api_key_file", "api_key_env", "script"] {
        let path = format!("model.{key}");
        if let Some(held) = settings.get(&path)
            && !models.is_empty()
            && held.origin != Origin::Default
        {
            let text = format!(
                "`{path}` is for a single model, and there are `[[model.models]]`; put it into one of them"
            );
            refuse(held, &path, text);
        }
    }
}
