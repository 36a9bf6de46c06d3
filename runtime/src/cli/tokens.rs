//! `interlock tokens`: who may come in through the gateway, and for what. A running gateway follows at once.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use interlock_actors::gateway::{
    Scope,
    tokens::{Grants, TokenError, TokenStore},
};
use interlock_bus::{
    KeyStore, PeerName, TopicFilter,
    keys::{private_file, time_text},
};
use serde_json::json;

use super::{CliError, Global, Output, keys, output, output::table};
use crate::{exit::Exit, lifecycle::DataDir, peers};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a token. It is shown once, and kept nowhere.
    Issue(Issue),
    /// List all tokens: what each opens, until when, and when it was used.
    List {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token: requests with it are refused and open streams end at once.
    Revoke {
        /// Which token.
        name: PeerName,
        /// What was done, as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Put a damaged `tokens.json` aside and begin without tokens; all that were issued are revoked. A file that can be read is
    /// left as it is.
    Reset {
        /// What was done, as one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Issue {
    /// Name of the token. Its bearer is the peer `web-NAME` on the bus.
    name: PeerName,
    /// What it opens: chat, bus, inspect, admin or metrics; may be repeated. `chat` is all conversations, whoever began them;
    /// `admin` is every order, also that of more tokens.
    #[arg(long, value_name = "SCOPE", required = true)]
    scope: Vec<Scope>,
    /// What it may publish, for example 'greetings/#'; may be repeated. Needs the scope bus, as do the next two.
    #[arg(long, value_name = "FILTER")]
    publish: Vec<TopicFilter>,
    /// What it may subscribe to.
    #[arg(long, value_name = "FILTER")]
    subscribe: Vec<TopicFilter>,
    /// What it may request.
    #[arg(long, value_name = "FILTER")]
    request: Vec<TopicFilter>,
    /// Until when it works, from now, for example `12h` or `30d`; by default it has no end.
    #[arg(long, value_name = "DURATION", value_parser = keys::time_to_live)]
    expires: Option<Duration>,
    /// New file for the token, readable by its owner only.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the token although standard output is no terminal.
    #[arg(long, conflicts_with = "out")]
    print: bool,
    /// What was done, as one JSON object without the token; needs --out.
    #[arg(long, requires = "out")]
    json: bool,
}

pub(super) fn run(verb: Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    match verb {
        Verb::Issue(arguments) => issue(arguments, &data_dir, output),
        Verb::List { json } => list(json, &data_dir, output),
        Verb::Revoke { name, json } => revoke(&name, json, &data_dir, output),
        Verb::Reset { json } => reset(json, &data_dir, output),
    }
}

fn issue(issue: Issue, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    // Before anything is made: a token that nobody sees is of no use.
    let misuse = |text: String| CliError::new(Exit::Misuse, text);
    match &issue.out {
        Some(path) if path.symlink_metadata().is_ok() => {
            return Err(misuse(format!("`{}` is there already; choose another file", path.display())));
        }
        None if !issue.print && !output.is_terminal() => {
            let text = "standard output is no terminal; write the token to a file with `--out FILE`, or say `--print`";
            return Err(misuse(text.to_owned()));
        }
        _ => {}
    }
    data_dir.create()?;
    let (keys, _) = KeyStore::open_or_create(&data_dir.keys())?;
    let Issue { name, scope, publish, subscribe, request, expires, out, json, .. } = issue;
    let grants = Grants { scopes: scope, publish, subscribe, request };
    let expires_ms = expires.map(keys::end_ms);
    let token = TokenStore::new(keys).issue(&name, &grants, &peers::of_bearer, expires_ms)?;
    let Some(path) = out else {
        output.say("this token is shown this once; it goes into the header `Authorization: Bearer TOKEN`");
        output.line(&token)?;
        return Ok(Exit::Done);
    };
    private_file::replace(&path, format!("{}\n", *token).as_bytes())?;
    if json {
        let scopes: Vec<&str> = grants.scopes.iter().map(|scope| scope.as_str()).collect();
        let line =
            json!({ "name": name, "file": path, "scopes": scopes, "expires": expires_ms.map(time_text) });
        output.line(&output::json(&line)?)?;
    } else {
        output.line(&path.display().to_string())?;
    }
    Ok(Exit::Done)
}

fn list(as_json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let tokens = TokenStore::new(KeyStore::open(&data_dir.keys())?).list()?;
    if as_json {
        for token in &tokens {
            let record = &token.record;
            let line = json!({
                "name": record.name, "state": token.state, "scopes": record.scopes, "peer": record.peer(),
                "issued": time_text(record.issued_ms), "expires": record.expires_ms.map(time_text),
                "revoked": record.revoked_ms.map(time_text), "last_used": token.last_used_ms.map(time_text),
                "permissions": token.permissions,
            });
            output.line(&output::json(&line)?)?;
        }
        return Ok(Exit::Done);
    }
    if tokens.is_empty() {
        output.say("no token was issued; `interlock tokens issue NAME --scope chat` makes one");
        return Ok(Exit::Done);
    }
    let mut rows = vec![
        ["NAME", "STATE", "SCOPES", "CREATED", "EXPIRES", "LAST USE", "RIGHTS"].map(str::to_owned).to_vec(),
    ];
    for token in &tokens {
        let record = &token.record;
        let scopes: Vec<&str> = record.scopes.iter().map(|scope| scope.as_str()).collect();
        rows.push(vec![
            record.name.to_string(),
            token.state.to_owned(),
            scopes.join(","),
            keys::time(Some(record.issued_ms)),
            keys::time(record.expires_ms),
            keys::time(token.last_used_ms),
            keys::in_short(&token.permissions),
        ]);
    }
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}

fn revoke(name: &PeerName, as_json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let unsaid = TokenStore::new(KeyStore::open(&data_dir.keys())?).revoke(name)?;
    if as_json {
        let undone = unsaid.map(|error| error.to_string());
        output.line(&output::json(&json!({ "name": name, "state": "revoked", "undone": undone }))?)?;
    } else {
        output.say(&format!("revoked `{name}`; a running gateway refuses it and ends its streams at once"));
        unsaid.iter().for_each(|error| output.say(&keys::unsaid(error)));
    }
    Ok(Exit::Done)
}

fn reset(as_json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let (aside, peers) = TokenStore::new(KeyStore::open(&data_dir.keys())?).reset()?;
    if as_json {
        output.line(&output::json(&json!({ "aside": aside, "revoked": peers }))?)?;
        return Ok(Exit::Done);
    }
    output.say(&format!(
        "`{}` is the damaged file now; there are no tokens, {} peers of tokens were revoked; `interlock tokens issue NAME` makes new ones",
        aside.display(),
        peers.len()
    ));
    Ok(Exit::Done)
}

impl From<TokenError> for CliError {
    fn from(error: TokenError) -> Self {
        let exit = match &error {
            TokenError::Keys(error) => Exit::of_key(error),
            TokenError::Full => Exit::Full,
            TokenError::Unknown(_) => Exit::Failed,
            TokenError::Exists(_)
            | TokenError::Name(_)
            | TokenError::Reserved(_)
            | TokenError::NoScope
            | TokenError::OfTheBroker { .. }
            | TokenError::Whole
            | TokenError::RightsWithoutBus => Exit::Misuse,
        };
        Self::new(exit, error.to_string())
    }
}
