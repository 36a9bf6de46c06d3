//! `bus doctor`: looks at everything that keeps a bus from working, and says what to do about it.
//!
//! | file | what is looked at |
//! |---|---|
//! | `files` | directories and files: who can read them |
//! | `keys` | the credentials, the broker's key, the registry and its peers |
//! | `machine` | limits of processes, disk |
//! | `endpoints` | whether the broker answers where the credentials say |
//! | `broker` | what the broker knows: losses, refusals, slow subscribers, topics with one end |
//!
//! From the ground up: what stands first may be the cause of what follows. Everything before `endpoints` also works
//! without a broker. Nothing is changed, and no secret is shown.

mod broker;
mod endpoints;
mod files;
mod keys;
mod machine;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::json;

use super::{Failure, Output, ask_broker, locate};
use crate::{exit::Exit, keys::Credentials};

/// What `bus doctor` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bus doctor\n  bus doctor --json | jq 'select(.level != \"ok\")'")]
pub(super) struct Arguments {
    /// Print only warnings and failures
    #[arg(long)]
    quiet: bool,
}

/// How good what was found is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of the diagnosis.
#[derive(Clone, Debug)]
struct Finding {
    level: Level,
    check: &'static str,
    found: String,
    /// A command to paste.
    remedy: Option<String>,
    /// What a failure ends with.
    exit: Exit,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, found: found.into(), remedy: None, exit: Exit::Done }
    }

    fn warn(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Warn, ..Self::ok(check, found) }
    }

    fn fail(check: &'static str, exit: Exit, found: impl Into<String>) -> Self {
        Self { level: Level::Fail, exit, ..Self::ok(check, found) }
    }

    fn remedy(self, command: impl Into<String>) -> Self {
        Self { remedy: Some(command.into()), ..self }
    }
}

/// Failures by how bad they are: what is lost or cannot be trusted before what only does not run.
const WORST_FIRST: [Exit; 9] = [
    Exit::Damaged,
    Exit::Io,
    Exit::Full,
    Exit::Version,
    Exit::Denied,
    Exit::Misuse,
    Exit::Busy,
    Exit::Failed,
    Exit::NotReady,
];

/// The code of the worst failure; done if there are only warnings.
fn exit_of(findings: &[Finding]) -> Exit {
    let failures =
        || findings.iter().filter(|finding| finding.level == Level::Fail).map(|finding| finding.exit);
    let worst = WORST_FIRST.into_iter().find(|exit| failures().any(|failure| failure == *exit));
    worst.or_else(|| failures().next()).unwrap_or(Exit::Done)
}

/// What is examined: an instance on this machine, or where the credentials lead.
struct Patient {
    /// The data directory; `None` if only credentials were named, which may lead to another machine.
    data: Option<PathBuf>,
    credentials: Result<Credentials, Failure>,
    instance: Option<Instance>,
}

/// What a running instance says of itself in `run/instance.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Instance {
    pid: u32,
}

impl Patient {
    fn find(creds: Option<&Path>, data_dir: Option<&Path>) -> Result<Self, Failure> {
        let data = match (creds, data_dir) {
            (Some(_), None) => None,
            _ => Some(locate::data_directory(data_dir)?),
        };
        let credentials = locate::credentials(creds, data_dir);
        let text = data.as_ref().and_then(|data| std::fs::read(data.join("run/instance.json")).ok());
        let instance = text.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(Self { data, credentials, instance })
    }
}

pub(super) fn run(
    arguments: &Arguments,
    creds: Option<&Path>,
    data_dir: Option<&Path>,
    timeout: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let patient = Patient::find(creds, data_dir)?;
    let mut findings = Vec::new();
    let mut tell = |new: Vec<Finding>, output: &mut Output| -> Result<(), Failure> {
        new.iter()
            .filter(|finding| !arguments.quiet || finding.level != Level::Ok)
            .try_for_each(|finding| print(finding, output))?;
        findings.extend(new);
        Ok(())
    };
    tell(files::examine(&patient), output)?;
    tell(keys::examine(&patient), output)?;
    let (session, answering) = endpoints::examine(&patient, timeout);
    tell(answering, output)?;
    let mut sessions_max = None;
    if let Some(client) = session {
        let info = ask_broker(&client, "info");
        sessions_max = info.as_ref().ok().and_then(|info| info["limits"]["sessions_max"].as_u64());
        tell(broker::examine(&client, info), output)?;
        client.close_blocking();
    }
    tell(machine::examine(&patient, sessions_max), output)?;
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (ok, warnings, failures) = (count(Level::Ok), count(Level::Warn), count(Level::Fail));
    output.note(&format!("{ok} ok, {warnings} warnings, {failures} failures"));
    Ok(exit_of(&findings))
}

fn print(finding: &Finding, output: &mut Output) -> Result<(), Failure> {
    let Finding { level, check, found, remedy, exit } = finding;
    if output.is_json() {
        return output.json(&json!({
            "level": level.name(), "check": check, "found": found, "do": remedy, "code": exit.code(),
        }));
    }
    let remedy = remedy.as_ref().map(|remedy| format!("  ->  {remedy}")).unwrap_or_default();
    let line = output.harmless(&format!("{:<4}  {check:<19}  {found}{remedy}", level.name()));
    output.line(&line)
}

/// A path as a word of a shell's command.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@%".contains(&byte);
    match path.bytes().all(is_plain) {
        true => path,
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

/// The first few of some names, and how many more there are.
fn some_of(names: &[String]) -> String {
    /// Names in one line of the diagnosis.
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_failure_gives_the_code_and_warnings_none() {
        let warn = || Finding::warn("a", "");
        let fail = |exit| Finding::fail("b", exit, "");
        assert_eq!(exit_of(&[warn(), Finding::ok("a", "")]), Exit::Done);
        assert_eq!(exit_of(&[fail(Exit::NotReady), warn(), fail(Exit::Damaged)]), Exit::Damaged);
        assert_eq!(exit_of(&[fail(Exit::NotReady), fail(Exit::Misuse)]), Exit::Misuse);
        assert_eq!(exit_of(&[fail(Exit::Pending)]), Exit::Pending);
    }

    #[test]
    fn what_is_pasted_means_the_path() {
        assert_eq!(quoted(Path::new("/a/b-c.toml")), "/a/b-c.toml");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
