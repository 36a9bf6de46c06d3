//! A configuration as text: every value and where it came from, secrets left out.

use std::fmt::Write;

use serde_json::json;

use super::{Config, Loaded, Origin, Program, Sources, schema};

/// Stands for a value that may be a secret.
pub(crate) const HIDDEN: &str = "(hidden)";

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

/// The settings that are not the default, one line each, and the names of the programs.
pub fn difference(loaded: &Loaded) -> String {
    let mut out = String::new();
    for (path, value, default, origin) in differences(loaded) {
        let line = format!("{path} = {value}");
        let _ = writeln!(out, "{line:<44} # default {default}; {origin}");
    }
    for program in &loaded.config.programs {
        let line = format!("program {}", program.name);
        let _ = writeln!(out, "{line:<44} # default: none");
    }
    out
}

/// The same as one JSON object.
pub fn difference_json(loaded: &Loaded) -> serde_json::Value {
    let settings: serde_json::Map<_, _> = differences(loaded)
        .map(|(path, value, default, origin)| {
            (path, json!({ "value": value, "default": default, "origin": origin.to_string() }))
        })
        .collect();
    let programs: Vec<_> = loaded.config.programs.iter().map(|program| program.name.as_str()).collect();
    json!({ "settings": settings, "programs": programs })
}

fn differences(loaded: &Loaded) -> impl Iterator<Item = (String, &::toml::Value, ::toml::Value, &Origin)> {
    // The built-in file is valid; a test loads it.
    let defaults = Config::load(&Sources::default()).map(|loaded| loaded.held).unwrap_or_default();
    schema::SETTINGS.iter().filter_map(move |setting| {
        let path = setting.path();
        let (held, default) = (loaded.held.get(&path)?, defaults.get(&path)?);
        (held.value != default.value).then(|| (path, &held.value, default.value.clone(), &held.origin))
    })
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
