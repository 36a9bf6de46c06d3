//! The command line of a bench: what a person may choose, and the roles it starts itself in.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

/// What a bench tells itself in its roles; a person may give some of them too, as each bench says.
const ROLE_NAMES: [&str; 16] = [
    "role",
    "directory",
    "credentials",
    "bytes",
    "clock-every",
    "count",
    "in-flight",
    "messages",
    "publisher",
    "publishers",
    "rate",
    "record",
    "topic",
    "topics",
    "warm-up-ms",
    "window-ms",
];

/// `--name value` pairs. `cargo bench` adds a lone `--bench`, which means nothing here.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    values: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads the command line of this process.
    ///
    /// # Panics
    /// On an argument that is no pair, or a name not in `known`, naming it and what is known.
    pub fn read(known: &[&str]) -> Self {
        let mut values = BTreeMap::new();
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            let name =
                word.strip_prefix("--").filter(|name| ROLE_NAMES.contains(name) || known.contains(name));
            let name = name.unwrap_or_else(|| panic!("`{word}` is no option here; known: {known:?}, record"));
            let value = words.next().unwrap_or_else(|| panic!("`--{name}` needs a value"));
            values.insert(name.to_owned(), value);
        }
        Self { values }
    }

    /// A text, if given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// A value, or the default.
    ///
    /// # Panics
    /// If the text is no such value.
    pub fn value<T: FromStr>(&self, name: &str, default: T) -> T {
        let parse =
            |text: &str| text.parse().unwrap_or_else(|_| panic!("`--{name} {text}` is no such value"));
        self.text(name).map_or(default, parse)
    }

    /// A list with commas, or the default.
    ///
    /// # Panics
    /// If one of the texts is no such value.
    pub fn list(&self, name: &str, default: &[usize]) -> Vec<usize> {
        let parse =
            |text: &str| text.parse().unwrap_or_else(|_| panic!("`{text}` in `--{name}` is no number"));
        self.text(name).map_or(default.to_vec(), |text| text.split(',').map(parse).collect())
    }

    /// A time in milliseconds.
    ///
    /// # Panics
    /// If it is missing or no number.
    pub fn milliseconds(&self, name: &str) -> Duration {
        assert!(self.text(name).is_some(), "this role is given its `--{name}`");
        Duration::from_millis(self.value(name, 0))
    }

    /// Whether this side is to be measured: `interlock` or `libzmq`.
    pub fn wants(&self, side: &str) -> bool {
        self.text("only").is_none_or(|only| only == side)
    }

    /// Warm-up and window as a person chose them or by default, for both sides' programs.
    pub fn times(&self, warm_up_ms: u64, window_ms: u64) -> Words {
        vec![
            ("warm-up-ms", self.value("warm-up-ms", warm_up_ms).to_string()),
            ("window-ms", self.value("window-ms", window_ms).to_string()),
        ]
    }
}

/// Names and values for a role of ours (`--name value`) or a role of libzmq's side (`name=value`).
pub type Words = Vec<(&'static str, String)>;
