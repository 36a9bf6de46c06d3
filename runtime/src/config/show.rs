//! A configuration as text: every value and where it came from, secrets left out.

use std::fmt::Write;

use serde_json::json;

use super::{Loaded, Origin, Program, schema};

/// Stands for a value that may be a secret.
const HIDDEN: &str = "(hidden)";

/// As TOML, with the origin of each value in a comment.
pub fn toml(loaded: &Loaded) -> String {
    let mut out = String::new();
    let mut section = "";
    for setting in schema::SETTINGS {
        if setting.section != section {
            let _ = writeln!(out, "{}[{}]", if section.is_empty() { "" } else { "\n" }, setting.section);
            section = setting.section;
        }
        if let Some(held) = loaded.held.get(&setting.path()) {
            let line = format!("{} = {}", setting.key, held.value);
            let _ = writeln!(out, "{line:<44} # {}", held.origin);
        }
    }
    for program in &loaded.config.programs {
        let text = ::toml::to_string(&redacted(program)).unwrap_or_default();
        let _ = write!(out, "\n[[program]]\n{}", text.replace("[environment]", "[program.environment]"));
    }
    out
}

/// As one JSON object: `section.key` to value and origin, and the programs.
pub fn json(loaded: &Loaded) -> serde_json::Value {
    let settings: serde_json::Map<_, _> = schema::SETTINGS
        .iter()
        .filter_map(|setting| loaded.held.get_key_value(&setting.path()))
        .map(|(path, held)| (path.clone(), json!({ "value": held.value, "origin": held.origin.to_string() })))
        .collect();
    let programs: Vec<Program> = loaded.config.programs.iter().map(redacted).collect();
    json!({ "settings": settings, "programs": programs })
}

fn redacted(program: &Program) -> Program {
    let mut program = program.clone();
    program.environment.values_mut().for_each(|value| HIDDEN.clone_into(value));
    program
}

/// How many values are not defaults.
pub fn changed(loaded: &Loaded) -> usize {
    loaded.held.values().filter(|held| held.origin != Origin::Default).count()
}
