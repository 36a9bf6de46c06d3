//! The list of settings: name, type and range of each. Their defaults stand in `interlock.toml`.

use std::time::Duration;

use super::kind::Kind;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The section it stands in.
    pub section: &'static str,
    /// Its key in that section.
    pub key: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// When a change of it takes effect while the runtime runs.
    pub effect: Effect,
}

/// When a change of a setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// As soon as the file is read again.
    AtOnce,
    /// Then these components are restarted, in order and one by one; the others go on.
    Restarts(&'static [&'static str]),
    /// When the runtime is started again.
    NextStart,
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

const LEVELS: &[&str] = &["trace", "debug", "info", "warn", "error"];
const CONSOLE_LEVELS: &[&str] = &["off", "trace", "debug", "info", "warn", "error"];

const fn setting(section: &'static str, key: &'static str, kind: Kind) -> Setting {
    Setting { section, key, kind, effect: Effect::NextStart }
}

const fn at_once(section: &'static str, key: &'static str, kind: Kind) -> Setting {
    Setting { effect: Effect::AtOnce, ..setting(section, key, kind) }
}

const fn restarts(
    components: &'static [&'static str],
    section: &'static str,
    key: &'static str,
    kind: Kind,
) -> Setting {
    Setting { effect: Effect::Restarts(components), ..setting(section, key, kind) }
}

const BACK_ENDS: &[&str] = &["script", "openai", "ollama"];

const GATEWAY: &[&str] = &["gateway"];
const TURNS: &[&str] = &["gateway", "conversation"];
const MODEL: &[&str] = &["model"];
const CONVERSATION: &[&str] = &["conversation"];
const OUTBOX: &[&str] = &["outbox"];

/// All settings but those of programs.
pub const SETTINGS: &[Setting] = &[
    setting("runtime", "data_dir", Kind::Text),
    setting("bus", "endpoints", Kind::Endpoints),
    setting("bus", "send_queue_messages", Kind::Integer(1, 1 << 20)),
    setting("bus", "send_queue_bytes", Kind::Integer(64 << 10, 1 << 30)),
    setting("bus", "sessions_max", Kind::Integer(16, 65_536)),
    setting("bus", "retained_bytes_max", Kind::Integer(0, 4 << 30)),
    setting("gateway", "listen", Kind::Listen),
    restarts(GATEWAY, "gateway", "workers", Kind::Integer(1, 64)),
    restarts(GATEWAY, "gateway", "body_bytes_max", Kind::Integer(1, 16 << 20)),
    restarts(GATEWAY, "gateway", "streams_max", Kind::Integer(1, 10_000)),
    restarts(GATEWAY, "gateway", "token_rate", Kind::Integer(1, 1_000_000)),
    restarts(GATEWAY, "gateway", "address_rate", Kind::Integer(1, 1_000_000)),
    restarts(GATEWAY, "gateway", "failure_rate", Kind::Integer(1, 1_000_000)),
    restarts(GATEWAY, "gateway", "host_names", Kind::HostNames),
    restarts(GATEWAY, "gateway", "allowed_origins", Kind::Origins),
    setting("gateway", "tls_certificate", Kind::Text),
    setting("gateway", "tls_key", Kind::Text),
    restarts(GATEWAY, "gateway", "head_timeout", Kind::Duration(ms(10), ms(600_000))),
    restarts(GATEWAY, "gateway", "body_timeout", Kind::Duration(ms(10), ms(600_000))),
    restarts(GATEWAY, "gateway", "write_timeout", Kind::Duration(ms(10), HOUR)),
    restarts(TURNS, "gateway", "turn_timeout", Kind::Duration(ms(10), DAY)),
    restarts(MODEL, "model", "back_end", Kind::Choice(BACK_ENDS)),
    setting("model", "placement", Kind::Choice(&["process", "runtime"])),
    restarts(MODEL, "model", "script", Kind::Text),
    restarts(MODEL, "model", "url", Kind::Url),
    restarts(MODEL, "model", "model", Kind::Text),
    restarts(MODEL, "model", "api_key_file", Kind::Text),
    restarts(MODEL, "model", "api_key_env", Kind::Variable),
    restarts(MODEL, "model", "connect_timeout", Kind::Duration(ms(10), HOUR)),
    restarts(MODEL, "model", "read_timeout", Kind::Duration(ms(10), HOUR)),
    restarts(MODEL, "model", "tokens_max", Kind::Integer(0, 1_000_000)),
    restarts(MODEL, "model", "concurrent_max", Kind::Integer(1, 1024)),
    restarts(MODEL, "model", "waiting_max", Kind::Integer(0, 65_536)),
    restarts(MODEL, "model", "retries_max", Kind::Integer(0, 10)),
    restarts(MODEL, "model", "models", Kind::Models),
    restarts(MODEL, "model", "fallback", Kind::Texts),
    restarts(MODEL, "model", "script_pause", Kind::Duration(Duration::ZERO, ms(10_000))),
    restarts(CONVERSATION, "conversation", "instructions", Kind::Text),
    restarts(CONVERSATION, "conversation", "history_messages_max", Kind::Integer(2, 10_000)),
    at_once("logs", "level", Kind::Choice(LEVELS)),
    at_once("logs", "levels", Kind::LevelTable),
    at_once("logs", "console", Kind::Choice(CONSOLE_LEVELS)),
    at_once("logs", "retention", Kind::Duration(MINUTE, Duration::from_secs(3650 * 86_400))),
    at_once("logs", "retention_rows", Kind::Integer(1000, 1_000_000_000)),
    at_once("logs", "retention_bytes", Kind::Integer(1 << 20, 1 << 40)),
    at_once("outbox", "topics", Kind::Routes),
    at_once("outbox", "pending_max", Kind::Integer(0, 10_000_000)),
    at_once("outbox", "bytes_max", Kind::Integer(0, 1 << 40)),
    restarts(OUTBOX, "outbox", "item_bytes_max", Kind::Integer(1, 16 << 20)),
    at_once("outbox", "disk_floor", Kind::Integer(0, 1 << 50)),
    restarts(OUTBOX, "outbox", "policy", Kind::Choice(&["reject", "pause", "oldest_to_dead_letter"])),
    restarts(OUTBOX, "outbox", "attempts_max", Kind::Integer(1, 1000)),
    restarts(OUTBOX, "outbox", "retry_base", Kind::Duration(ms(10), DAY)),
    restarts(OUTBOX, "outbox", "retry_cap", Kind::Duration(ms(10), Duration::from_secs(7 * 86_400))),
    restarts(OUTBOX, "outbox", "sweep", Kind::Duration(ms(10), HOUR)),
    restarts(OUTBOX, "outbox", "attempt_timeout", Kind::Duration(ms(10), HOUR)),
    restarts(OUTBOX, "outbox", "in_flight", Kind::Integer(1, 1024)),
    restarts(
        OUTBOX,
        "outbox",
        "absent_max",
        Kind::Duration(Duration::ZERO, Duration::from_secs(3650 * 86_400)),
    ),
    at_once("outbox", "keep_finished", Kind::Duration(Duration::ZERO, Duration::from_secs(3650 * 86_400))),
    at_once("outbox", "keep_finished_max", Kind::Integer(0, 10_000_000)),
    setting("shutdown", "drain", Kind::Duration(ms(10), HOUR)),
    setting("shutdown", "forced", Kind::Duration(ms(10), Duration::from_secs(7200))),
];

/// The keys of one `[[program]]`.
pub const PROGRAM: &[Setting] = &[
    setting("program", "name", Kind::PeerName),
    setting("program", "command", Kind::TextRequired),
    setting("program", "args", Kind::Texts),
    setting("program", "directory", Kind::Text),
    setting("program", "environment", Kind::TextTable),
    setting("program", "restart", Kind::Choice(&["permanent", "transient", "temporary"])),
    setting("program", "readiness", Kind::Readiness),
    setting("program", "ready_timeout", Kind::Duration(ms(10), HOUR)),
    setting("program", "needs", Kind::Needs),
    setting("program", "heartbeat", Kind::Duration(Duration::ZERO, HOUR)),
    setting("program", "liveness", Kind::Probe),
    setting(
        "program",
        "stop_signal",
        Kind::Choice(&["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"]),
    ),
    setting("program", "grace", Kind::Duration(Duration::ZERO, HOUR)),
    at_once("program", "publish", Kind::Filters),
    at_once("program", "subscribe", Kind::Filters),
    at_once("program", "serve", Kind::Filters),
    at_once("program", "request", Kind::Filters),
];

/// The keys of one `[[model.models]]`.
pub const NAMED_MODEL: &[(&str, Kind)] = &[
    ("name", Kind::TextRequired),
    ("back_end", Kind::Choice(BACK_ENDS)),
    ("url", Kind::Url),
    ("model", Kind::Text),
    ("api_key_file", Kind::Text),
    ("api_key_env", Kind::Variable),
    ("script", Kind::Text),
    ("embeddings", Kind::Boolean),
    ("connect_timeout", Kind::Duration(ms(10), HOUR)),
    ("read_timeout", Kind::Duration(ms(10), HOUR)),
    ("tokens_max", Kind::Integer(0, 1_000_000)),
    ("concurrent_max", Kind::Integer(1, 1024)),
    ("waiting_max", Kind::Integer(0, 65_536)),
    ("retries_max", Kind::Integer(0, 10)),
];

/// Keys without which a `[[program]]` cannot run.
pub const PROGRAM_REQUIRED: &[&str] = &["name", "command"];

/// Names that belong to the runtime itself and are no component.
pub const NO_COMPONENTS: &[&str] = &["operator", "root"];

/// Names that belong to the runtime itself.
pub const NAMES_TAKEN: &[&str] = &[
    "broker",
    "conversation",
    "gateway",
    "log-consumer",
    "log-transport",
    "model",
    "operator",
    "outbox",
    "root",
    "runtime",
    "store",
];

impl Setting {
    /// `section.key`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// The environment variable of this setting.
    pub fn variable(&self) -> String {
        format!("INTERLOCK_{}__{}", self.section.to_ascii_uppercase(), self.key.to_ascii_uppercase())
    }
}

/// The comment above a key in `interlock.toml`, as one paragraph.
pub fn comment(setting: &Setting) -> String {
    let (prefix, begin) = match setting.section {
        "program" => ("# # ", "# [[program]]".to_owned()),
        section => ("# ", format!("\n[{section}]")),
    };
    let key = if setting.section == "program" {
        format!("\n# {} = ", setting.key)
    } else {
        format!("\n{} = ", setting.key)
    };
    let section = super::DEFAULTS.split_once(&begin).map_or("", |(_, section)| section);
    let above = section.split_once(&key).map_or("", |(above, _)| above);
    let mut lines: Vec<&str> = above.lines().rev().map_while(|line| line.strip_prefix(prefix)).collect();
    lines.reverse();
    lines.join(" ")
}

/// The setting at `section.key`.
pub fn find(section: &str, key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.section == section && setting.key == key)
}

/// The one of `names` that `word` was probably meant to be: at most a third of its letters wrong.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (distance(word, name), name))
        .filter(|(distance, name)| *distance * 3 <= name.len().max(3))
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, byte) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, other) in to.iter().enumerate() {
            let mut least = (above[j] + usize::from(byte != other)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *byte == to[j - 1] && from[i - 1] == *other {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_the_one_that_was_meant() {
        let names = || ["listen", "workers", "body_bytes_max"].into_iter();
        assert_eq!(nearest("lisen", names()), Some("listen"));
        assert_eq!(nearest("modle", ["model", "broker"].into_iter()), Some("model"));
        assert_eq!(nearest("body_byte_max", names()), Some("body_bytes_max"));
        assert_eq!(nearest("colour", names()), None);
    }
}
