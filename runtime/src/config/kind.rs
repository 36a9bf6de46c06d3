//! What a value may be: one check for every entrance (file, environment, flag), and the words that say what is allowed.

use std::{net::SocketAddr, time::Duration};

use interlock_actors::log_transport::Threshold;
use interlock_bus::{Endpoint, PeerName, TopicFilter, durable::words};
use serde_json::json;
use toml::Value;

use super::{Need, ProgramReadiness, duration, schema::NAMED_MODEL};
use crate::process::Probe;

/// The type and range of one setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number within these bounds, both included.
    Integer(i64, i64),
    /// Any text.
    Text,
    /// Text that is not empty.
    TextRequired,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A duration within these bounds, both included.
    Duration(Duration, Duration),
    /// An IP address and port.
    Listen,
    /// An `http` or `https` URL without user or password, or nothing.
    Url,
    /// `ipc` and TCP endpoints, at most one of each transport, at least one in all.
    Endpoints,
    /// A peer name.
    PeerName,
    /// A name of an environment variable, or nothing.
    Variable,
    /// How a program says that it is ready.
    Readiness,
    /// A list of children, and what of each is waited for.
    Needs,
    /// An `http` URL, or nothing.
    Probe,
    /// A list of texts.
    Texts,
    /// A list of names of hosts.
    HostNames,
    /// A list of origins of pages.
    Origins,
    /// A list of topic filters.
    Filters,
    /// A table of texts.
    TextTable,
    /// A table of components and modules, and the level of each.
    LevelTable,
    /// A list of tables, each a topic filter and the names of consumers.
    Routes,
    /// A list of tables, each a model by name.
    Models,
    /// `true` or `false`.
    Boolean,
}

impl Kind {
    /// Whether `value` is allowed.
    pub fn permits(self, value: &Value) -> bool {
        match self {
            Self::Integer(least, most) => {
                value.as_integer().is_some_and(|number| (least..=most).contains(&number))
            }
            Self::Text => value.as_str().is_some_and(printable),
            Self::TextRequired => value.as_str().is_some_and(|text| !text.is_empty() && printable(text)),
            Self::Choice(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Self::Duration(least, most) => {
                value.as_str().and_then(duration::parse).is_some_and(|span| (least..=most).contains(&span))
            }
            Self::Listen => value.as_str().is_some_and(|text| text.parse::<SocketAddr>().is_ok()),
            Self::Url => value.as_str().is_some_and(|text| text.is_empty() || is_plain_url(text)),
            Self::Endpoints => is_endpoints(value),
            Self::PeerName => value.as_str().is_some_and(|text| text.parse::<PeerName>().is_ok()),
            Self::Variable => value.as_str().is_some_and(is_variable),
            Self::Readiness => value.as_str().is_some_and(|text| text.parse::<ProgramReadiness>().is_ok()),
            Self::Needs => each(value, |text| text.parse::<Need>().is_ok()),
            Self::Probe => {
                value.as_str().is_some_and(|text| text.is_empty() || text.parse::<Probe>().is_ok())
            }
            Self::Texts => each(value, printable),
            Self::HostNames => each(value, is_host_name),
            Self::Origins => each(value, is_origin),
            Self::Filters => each(value, |text| text.parse::<TopicFilter>().is_ok()),
            Self::TextTable => value.as_table().is_some_and(|table| {
                table.iter().all(|(name, value)| !name.is_empty() && is_variable(name) && value.is_str())
            }),
            Self::Routes | Self::Models => value
                .as_array()
                .is_some_and(|blocks| blocks.iter().all(|block| self.mistakes(block).is_empty())),
            Self::Boolean => value.is_bool(),
            Self::LevelTable => value.as_table().is_some_and(|table| {
                let is_level =
                    |value: &Value| value.as_str().is_some_and(|text| text.parse::<Threshold>().is_ok());
                table.iter().all(|(name, value)| !name.is_empty() && printable(name) && is_level(value))
            }),
        }
    }

    /// What is allowed, in words.
    pub fn allowed(self) -> String {
        match self {
            Self::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Self::Text => "a text without control characters".to_owned(),
            Self::TextRequired => "a text that is not empty".to_owned(),
            Self::Choice(words) => {
                words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
            }
            Self::Duration(least, most) => format!(
                "a duration from \"{}\" to \"{}\", a number and a unit (ms, s, m, h, d)",
                duration::text(least),
                duration::text(most)
            ),
            Self::Listen => "an IP address and port, for example \"127.0.0.1:8771\"".to_owned(),
            Self::Url => "a URL that begins with http:// or https:// and names no user, or \"\"".to_owned(),
            Self::Endpoints => {
                "a list of \"ipc\" and one of the form \"tcp://127.0.0.1:5555\", at most one of each, at least one"
                    .to_owned()
            }
            Self::PeerName => "1 to 64 characters of a-z, A-Z, 0-9, - and _, beginning with a letter or a digit".to_owned(),
            Self::Variable => "the name of an environment variable, or \"\"".to_owned(),
            Self::Readiness => {
                "\"started\", \"newline\", \"notify\", \"bus\", \"line:\" and a regular expression, or a URL such as \"http://127.0.0.1:8080/health\""
                    .to_owned()
            }
            Self::Needs => "a list of names of other children, for example [\"model\"], each with \":started\", \":ready\", \":healthy\", \":completed\" or \":log:\" and a regular expression behind it, or nothing for ready".to_owned(),
            Self::Probe => "a URL that begins with http:// and names no user, or \"\"".to_owned(),
            Self::Texts => "a list of texts".to_owned(),
            Self::HostNames => "a list of names of hosts without ports, for example [\"bus.example\"]".to_owned(),
            Self::Origins => "a list of origins, each http:// or https:// and a host, and a port if it is not the usual one, for example [\"https://app.example\"]".to_owned(),
            Self::Filters => "a list of topic filters, for example [\"greetings/#\"]".to_owned(),
            Self::LevelTable => "a table of components or modules and \"off\", \"trace\", \"debug\", \"info\", \"warn\" or \"error\", for example { gateway = \"debug\" }".to_owned(),
            Self::Routes => {
                "blocks of a `filter` and `consumers`, for example { filter = \"orders/#\", consumers = [\"billing\"] }".to_owned()
            }
            Self::Models => {
                "blocks of a `name`, a `back_end` and what that needs, for example { name = \"big\", back_end = \"openai\", url = \"http://127.0.0.1:8000/v1\", model = \"m\" }"
                    .to_owned()
            }
            Self::Boolean => "true or false".to_owned(),
            Self::TextTable => "a table of variable names and texts, for example { NAME = \"value\" }".to_owned(),
        }
    }

    /// As a JSON Schema. What it cannot say exactly (a regular expression, a topic filter) is left to `interlock check`.
    pub fn json_schema(self) -> serde_json::Value {
        let texts = || json!({ "type": "array", "items": { "type": "string" } });
        match self {
            Self::Integer(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Self::Text | Self::Listen | Self::Url | Self::Variable | Self::Readiness | Self::Probe => {
                json!({ "type": "string" })
            }
            Self::TextRequired => json!({ "type": "string", "minLength": 1 }),
            Self::Choice(words) => json!({ "enum": words }),
            Self::Duration(..) => json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$" }),
            Self::Endpoints => {
                json!({ "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 2 })
            }
            Self::PeerName => json!({ "type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$" }),
            Self::Needs | Self::Texts | Self::HostNames | Self::Origins | Self::Filters => texts(),
            Self::LevelTable => json!({
                "type": "object",
                "additionalProperties": { "enum": ["off", "trace", "debug", "info", "warn", "error"] }
            }),
            Self::TextTable => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            Self::Boolean => json!({ "type": "boolean" }),
            Self::Models => json!({
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["name", "back_end"],
                    "properties": NAMED_MODEL
                        .iter()
                        .map(|(key, kind)| ((*key).to_owned(), kind.json_schema()))
                        .collect::<serde_json::Map<_, _>>(),
                },
            }),
            Self::Routes => json!({
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["filter", "consumers"],
                    "properties": {
                        "filter": { "type": "string" },
                        "consumers": { "type": "array", "minItems": 1, "uniqueItems": true, "items": Self::PeerName.json_schema() },
                    },
                },
            }),
        }
    }

    /// Reads a value from an environment variable or a flag, where all is text: numbers as numbers, lists
    /// as TOML or separated by commas, all else as text.
    pub fn read(self, text: &str) -> Value {
        let plain = || Value::String(text.to_owned());
        match self {
            Self::Integer(..) => text.parse().map_or_else(|_| plain(), Value::Integer),
            Self::Routes | Self::Models | Self::Boolean => as_toml(text).unwrap_or_else(plain),
            Self::Endpoints | Self::Needs | Self::Texts | Self::HostNames | Self::Origins | Self::Filters => {
                if text.starts_with('[') {
                    return as_toml(text).unwrap_or_else(plain);
                }
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
            // As TOML, or `gateway=debug,mio=info`.
            Self::LevelTable => {
                if let Some(table) = as_toml(text) {
                    return table;
                }
                let rules = text.split(',').map(str::trim).filter(|rule| !rule.is_empty());
                let rule = |rule: &str| {
                    let (name, level) = rule.split_once('=')?;
                    Some((name.trim().to_owned(), Value::String(level.trim().to_owned())))
                };
                rules.map(rule).collect::<Option<toml::Table>>().map_or_else(plain, Value::Table)
            }
            _ => plain(),
        }
    }
}

impl Kind {
    /// Everything that is wrong with one block of a list of blocks.
    pub(super) fn mistakes(self, block: &Value) -> Vec<String> {
        match self {
            Self::Models => model_mistakes(block),
            _ => route_mistakes(block),
        }
    }

    /// Whether it is a list of blocks, each with mistakes of its own.
    pub(super) fn is_blocks(self) -> bool {
        matches!(self, Self::Routes | Self::Models)
    }
}

/// A value as it stands behind `=` in a file.
fn as_toml(text: &str) -> Option<Value> {
    toml::from_str::<toml::Table>(&format!("value = {text}")).ok()?.remove("value")
}

/// Everything that is wrong with one model.
fn model_mistakes(model: &Value) -> Vec<String> {
    let Some(model) = model.as_table() else {
        return vec![format!("`{model}` is no table of a `name`, a `back_end` and what that needs")];
    };
    let kind_of = |key: &str| NAMED_MODEL.iter().find(|(known, _)| *known == key).map(|(_, kind)| *kind);
    let mut mistakes = Vec::new();
    for (key, value) in model {
        match kind_of(key) {
            Some(kind) if kind.permits(value) => {}
            Some(kind) => mistakes.push(format!("`{key}` is `{value}`; allowed: {}", kind.allowed())),
            None => {
                let keys: Vec<String> = NAMED_MODEL.iter().map(|(key, _)| format!("`{key}`")).collect();
                mistakes.push(format!("unknown key `{key}`; the keys are {}", keys.join(", ")));
            }
        }
    }
    let text = |key: &str| model.get(key).and_then(Value::as_str).unwrap_or_default();
    for (key, example) in [("name", "big"), ("back_end", "ollama")] {
        if !model.contains_key(key) {
            mistakes.push(format!("there is no `{key}`; add for example `{key} = \"{example}\"`"));
        }
    }
    let is_server = matches!(text("back_end"), "openai" | "ollama");
    if is_server && text("model").is_empty() {
        mistakes.push(format!("`{}` has no `model`; say what its server calls it", text("name")));
    }
    if text("back_end") == "openai" && text("url").is_empty() {
        mistakes.push(format!("`{}` has the back end `openai`, which needs a `url`", text("name")));
    }
    if !is_server {
        for key in ["url", "model", "api_key_file", "api_key_env", "embeddings"] {
            if model.contains_key(key) && model[key].as_bool() != Some(false) {
                mistakes.push(format!("`{key}` is nothing for the back end `script`"));
            }
        }
    } else if model.contains_key("script") {
        mistakes.push("`script` is for the back end `script` only".to_owned());
    }
    if !text("api_key_file").is_empty() && !text("api_key_env").is_empty() {
        mistakes.push("`api_key_file` and `api_key_env` are both set; set one".to_owned());
    }
    mistakes
}

/// Everything that is wrong with one route.
fn route_mistakes(route: &Value) -> Vec<String> {
    let Some(route) = route.as_table() else {
        return vec![format!("`{route}` is no table of a `filter` and `consumers`")];
    };
    let mut mistakes: Vec<String> = route
        .keys()
        .filter(|key| !matches!(key.as_str(), "filter" | "consumers"))
        .map(|key| format!("unknown key `{key}`; the keys are `filter` and `consumers`"))
        .collect();
    match route.get("filter").map(|filter| (filter, filter.as_str().map(str::parse::<TopicFilter>))) {
        None => mistakes.push("there is no `filter`; add for example `filter = \"orders/#\"`".to_owned()),
        Some((filter, None)) => mistakes.push(format!("`filter` is `{filter}`; allowed: a topic filter")),
        Some((_, Some(Err(error)))) => mistakes.push(format!("`filter`: {error}")),
        Some((filter, Some(Ok(_)))) if filter.as_str().is_some_and(|filter| filter.starts_with('$')) => mistakes
            .push(format!("`filter` is `{filter}`: topics of the bus itself are not published durably; name topics without `$`")),
        Some((_, Some(Ok(_)))) => {}
    }
    let consumers = match route.get("consumers") {
        Some(Value::Array(consumers)) if !consumers.is_empty() => consumers.as_slice(),
        Some(other) => {
            mistakes.push(format!("`consumers` is `{other}`; allowed: a list of at least one peer name"));
            &[]
        }
        None => {
            mistakes.push("there are no `consumers`; add for example `consumers = [\"billing\"]`".to_owned());
            &[]
        }
    };
    for (place, consumer) in consumers.iter().enumerate() {
        if !Kind::PeerName.permits(consumer) {
            mistakes.push(format!("`consumers` has `{consumer}`; allowed: {}", Kind::PeerName.allowed()));
        } else if consumer.as_str() == Some(words::OUTBOX) {
            mistakes.push(format!("`consumers` has `{consumer}`, which sends and consumes nothing; name who is to get the messages"));
        } else if consumers[..place].contains(consumer) {
            mistakes.push(format!("`consumers` has `{consumer}` twice; name each once"));
        }
    }
    mistakes
}

fn printable(text: &str) -> bool {
    text.chars().all(|character| !character.is_control() || matches!(character, '\n' | '\t'))
}

fn each(value: &Value, permits: impl Fn(&str) -> bool) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(|item| item.as_str().is_some_and(&permits)))
}

fn is_plain_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return false;
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !host.is_empty() && !host.contains('@') && rest.chars().all(|character| character.is_ascii_graphic())
}

fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_origin(text: &str) -> bool {
    let place = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    place.is_some_and(|place| {
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (place, None),
        };
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_address = address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        (is_address || is_host_name(host)) && port.is_none_or(|port| port.parse::<u16>().is_ok())
    })
}

fn is_variable(text: &str) -> bool {
    !text.starts_with(|character: char| character.is_ascii_digit())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

fn is_endpoints(value: &Value) -> bool {
    let is_tcp = |text: &str| matches!(text.parse(), Ok(Endpoint::Tcp { .. }));
    let count = |wanted: &dyn Fn(&str) -> bool| {
        value
            .as_array()
            .map_or(0, |items| items.iter().filter_map(Value::as_str).filter(|text| wanted(text)).count())
    };
    each(value, |text| text == "ipc" || is_tcp(text))
        && count(&|text| text == "ipc") <= 1
        && count(&is_tcp) <= 1
        && count(&|_| true) >= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        toml::from_str::<toml::Table>(&format!("value = {text}")).unwrap().remove("value").unwrap()
    }

    #[test]
    fn each_kind_permits_what_its_words_say_and_nothing_else() {
        let second = Duration::from_secs(1);
        let table: &[(Kind, &[&str], &[&str])] = &[
            (
                Kind::Integer(1, 3),
                &["1", "3"],
                &["0", "4", "true", "1.0", "\"1\"", "nan", "9223372036854775807"],
            ),
            (Kind::Text, &["\"\"", "\"a b\""], &["1", "\"\\u0007\"", "[]"]),
            (Kind::TextRequired, &["\"a\""], &["\"\""]),
            (Kind::Choice(&["a", "b"]), &["\"a\""], &["\"A\"", "\"c\"", "1"]),
            (
                Kind::Duration(second, second * 60),
                &["\"1s\"", "\"1m\""],
                &["\"0s\"", "\"2m\"", "10", "\"-1s\"", "\"1\""],
            ),
            (
                Kind::Listen,
                &["\"127.0.0.1:0\"", "\"[::1]:80\""],
                &["\"localhost:80\"", "\"127.0.0.1\"", "\"127.0.0.1:99999\"", "8771"],
            ),
            (
                Kind::Url,
                &["\"\"", "\"http://127.0.0.1:11434/v1\""],
                &["\"ftp://a\"", "\"http://\"", "\"http://me:secret@host/v1\"", "\"http://a b\""],
            ),
            (
                Kind::Endpoints,
                &["[\"ipc\"]", "[\"tcp://127.0.0.1:0\", \"ipc\"]"],
                &[
                    "[]",
                    "[\"ipc\", \"ipc\"]",
                    "[\"tcp://a:1\", \"tcp://b:1\"]",
                    "[\"udp://a:1\"]",
                    "\"ipc\"",
                    "[1]",
                ],
            ),
            (
                Kind::HostNames,
                &["[]", "[\"bus.example\", \"box\"]"],
                &["\"box\"", "[\"\"]", "[\"a:1\"]", "[\"*.example\"]", "[\"http://a\"]"],
            ),
            (
                Kind::Origins,
                &["[]", "[\"https://app.example\", \"http://localhost:3000\", \"http://[::1]:80\"]"],
                &[
                    "[\"*\"]",
                    "[\"app.example\"]",
                    "[\"https://a/\"]",
                    "[\"https://me@a\"]",
                    "[\"http://a:b\"]",
                    "[\"null\"]",
                ],
            ),
            (Kind::PeerName, &["\"greeter-1\""], &["\"\"", "\"a/b\"", "\"-a\""]),
            (Kind::Variable, &["\"\"", "\"OPENAI_API_KEY\""], &["\"A=B\"", "\"1A\"", "\"sk-123\""]),
            (Kind::Readiness, &["\"bus\"", "\"line:^ready$\""], &["\"soon\"", "\"line:(\"", "\"line:\""]),
            (
                Kind::Readiness,
                &["\"http://127.0.0.1:80/\""],
                &["\"https://127.0.0.1/\"", "\"http://\"", "\"http://me@host/\""],
            ),
            (
                Kind::Needs,
                &["[]", "[\"gateway\"]", "[\"a:completed\", \"a:log:^on [0-9]+\"]"],
                &["\"gateway\"", "[\"a/b\"]", "[\"a:soon\"]", "[\"a:log:(\"]"],
            ),
            (Kind::Probe, &["\"\"", "\"http://[::1]:80/health\""], &["\"ftp://a\"", "\"http:// a\"", "1"]),
            (Kind::Texts, &["[]", "[\"a\"]"], &["\"a\"", "[1]"]),
            (Kind::Filters, &["[\"a/#\"]"], &["[\"a//b\"]", "[\"#/a\"]"]),
            (Kind::TextTable, &["{}", "{ A = \"b\" }"], &["{ A = 1 }", "[]"]),
            (
                Kind::Routes,
                &["[]", "[{ filter = \"a/#\", consumers = [\"b\", \"c\"] }]"],
                &[
                    "{}",
                    "[1]",
                    "[{ filter = \"a/#\" }]",
                    "[{ consumers = [\"b\"] }]",
                    "[{ filter = \"a//b\", consumers = [\"b\"] }]",
                    "[{ filter = \"a\", consumers = [] }]",
                    "[{ filter = \"a\", consumers = [\"b\", \"b\"] }]",
                    "[{ filter = \"a\", consumers = [\"b/c\"] }]",
                    "[{ filter = \"a\", consumers = [\"b\"], more = 1 }]",
                ],
            ),
            (Kind::Boolean, &["true"], &["\"true\"", "1"]),
            (
                Kind::Models,
                &[
                    "[]",
                    "[{ name = \"a\", back_end = \"script\" }]",
                    "[{ name = \"a\", back_end = \"ollama\", model = \"m\", embeddings = true, retries_max = 0 }]",
                    "[{ name = \"a\", back_end = \"openai\", model = \"m\", url = \"http://h/v1\", read_timeout = \"1s\" }]",
                ],
                &[
                    "{}",
                    "[1]",
                    "[{ name = \"a\" }]",
                    "[{ back_end = \"script\" }]",
                    "[{ name = \"a\", back_end = \"other\" }]",
                    "[{ name = \"a\", back_end = \"ollama\" }]",
                    "[{ name = \"a\", back_end = \"openai\", model = \"m\" }]",
                    "[{ name = \"a\", back_end = \"script\", url = \"http://h/v1\" }]",
                    "[{ name = \"a\", back_end = \"script\", tokens_max = -1 }]",
                    "[{ name = \"a\", back_end = \"ollama\", model = \"m\", api_key_file = \"f\", api_key_env = \"E\" }]",
                    "[{ name = \"a\", back_end = \"script\", more = 1 }]",
                ],
            ),
        ];
        for (kind, good, bad) in table {
            for text in *good {
                assert!(kind.permits(&value(text)), "{kind:?} {text}");
            }
            for text in *bad {
                assert!(!kind.permits(&value(text)), "{kind:?} {text}");
            }
        }
    }

    #[test]
    fn a_list_from_the_environment_is_toml_or_separated_by_commas() {
        for text in ["ipc, tcp://127.0.0.1:0", "[\"ipc\", \"tcp://127.0.0.1:0\"]"] {
            assert!(Kind::Endpoints.permits(&Kind::Endpoints.read(text)), "{text}");
        }
        assert!(!Kind::Endpoints.permits(&Kind::Endpoints.read("[\"ipc\"")));
    }
}
