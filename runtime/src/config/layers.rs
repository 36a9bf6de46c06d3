//! Layers and provenance: defaults, file, environment, flags. Each later layer wins key by key, and each
//! value remembers where it came from.

use std::{collections::BTreeMap, path::Path};

use toml::{
    Value,
    de::{DeTable, DeValue},
};

use super::{
    problem::{Origin, Problem},
    schema::{self, PROGRAM, SETTINGS, Setting},
};

/// One value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// One `[[program]]` as given.
#[derive(Clone, Debug)]
pub(super) struct ProgramHeld {
    pub(super) keys: BTreeMap<&'static str, Held>,
    pub(super) origin: Origin,
}

/// What the layers hold so far, and the mistakes found on the way.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// By `section.key`.
    pub(super) settings: BTreeMap<String, Held>,
    pub(super) programs: Vec<ProgramHeld>,
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    fn refuse(&mut self, origin: &Origin, key: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem { origin: Some(origin.clone()), key: key.into(), text: text.into() });
    }

    fn hold(&mut self, setting: &Setting, value: Value, origin: Origin) {
        let path = setting.path();
        if setting.kind.permits(&value) {
            self.settings.insert(path, Held { value, origin });
        } else if let (true, Some(blocks)) = (setting.kind.is_blocks(), value.as_array()) {
            for mistake in blocks.iter().flat_map(|block| setting.kind.mistakes(block)) {
                self.refuse(&origin, path.as_str(), format!("`{path}`: {mistake}"));
            }
        } else {
            self.refuse(&origin, path.as_str(), not_allowed(&path, &value, setting));
        }
    }

    /// Blocks, each with the line on which it begins.
    fn hold_blocks(
        &mut self,
        setting: &Setting,
        value: &Value,
        spanned: &DeValue<'_>,
        origin: &Origin,
        at: &dyn Fn(usize) -> Origin,
    ) {
        let (Some(blocks), DeValue::Array(items)) = (value.as_array(), spanned) else {
            return self.hold(setting, value.clone(), origin.clone());
        };
        let mut is_well = true;
        for (block, item) in blocks.iter().zip(items.iter()) {
            for mistake in setting.kind.mistakes(block) {
                is_well = false;
                let text = format!("`{}`: {mistake}", setting.path());
                self.refuse(&at(item.span().start), setting.path(), text);
            }
        }
        if is_well {
            let origin = items.first().map_or_else(|| origin.clone(), |first| at(first.span().start));
            self.hold(setting, value.clone(), origin);
        }
    }

    /// Adds the text of a TOML file; `origin` says where a line of it is.
    pub(super) fn add_file(&mut self, text: &str, origin: impl Fn(usize) -> Origin) {
        let at = |byte: usize| origin(text[..byte.min(text.len())].matches('\n').count() + 1);
        let (spanned, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let origin = at(error.span().map_or(0, |span| span.start));
            self.refuse(&origin, "", format!("not valid TOML: {}", error.message().trim_end_matches('\n')));
        }
        let values: toml::Table = match toml::from_str(text) {
            Ok(values) => values,
            Err(_) if !errors.is_empty() => return,
            Err(error) => return self.refuse(&at(0), "", format!("not valid TOML: {}", error.message())),
        };
        for (section, content) in spanned.get_ref() {
            let name = section.get_ref().as_ref();
            let here = at(section.span().start);
            let value = &values[name];
            match content.get_ref() {
                DeValue::Array(items) if name == "program" => {
                    for (item, value) in items.iter().zip(value.as_array().into_iter().flatten()) {
                        match (item.get_ref(), value.as_table()) {
                            (DeValue::Table(keys), Some(value)) => {
                                self.add_program(keys, value, at(item.span().start), &at);
                            }
                            _ => self.refuse(
                                &here,
                                "program",
                                "`program` must be written as `[[program]]` blocks",
                            ),
                        }
                    }
                }
                _ if name == "program" => {
                    self.refuse(
                        &here,
                        "program",
                        "`program` must be written as `[[program]]`, one block for each",
                    );
                }
                DeValue::Table(keys) if SETTINGS.iter().any(|setting| setting.section == name) => {
                    for (key, content) in keys {
                        let key_text = key.get_ref().as_ref();
                        // The line of the value: errors are about it.
                        let origin = at(key.span().start.max(content.span().start.min(key.span().end)));
                        match schema::find(name, key_text) {
                            Some(setting) if setting.kind.is_blocks() => {
                                self.hold_blocks(setting, &value[key_text], content.get_ref(), &origin, &at);
                            }
                            Some(setting) => self.hold(setting, value[key_text].clone(), origin),
                            None => self.refuse(
                                &origin,
                                format!("{name}.{key_text}"),
                                unknown_key(name, key_text),
                            ),
                        }
                    }
                }
                _ if SETTINGS.iter().any(|setting| setting.section == name) => {
                    self.refuse(
                        &here,
                        name,
                        format!("`{name}` is a section; write `[{name}]` and its keys below it"),
                    );
                }
                DeValue::Table(_) | DeValue::Array(_) => self.refuse(&here, name, unknown_section(name)),
                _ => self.refuse(&here, name, unknown_top_level(name)),
            }
        }
    }

    fn add_program(
        &mut self,
        keys: &DeTable<'_>,
        values: &toml::Table,
        origin: Origin,
        at: &dyn Fn(usize) -> Origin,
    ) {
        let mut program = ProgramHeld { keys: BTreeMap::new(), origin };
        for (key, _) in keys {
            let (name, origin) = (key.get_ref().as_ref(), at(key.span().start));
            let Some(setting) = PROGRAM.iter().find(|setting| setting.key == name) else {
                self.refuse(&origin, format!("program.{name}"), unknown_key("program", name));
                continue;
            };
            let value = values[name].clone();
            if setting.kind.permits(&value) {
                program.keys.insert(setting.key, Held { value, origin });
            } else {
                // Values of `environment` may be secrets.
                let shown = if name == "environment" { Value::String("(hidden)".to_owned()) } else { value };
                self.refuse(&origin, setting.path(), not_allowed(&setting.path(), &shown, setting));
            }
        }
        self.programs.push(program);
    }

    /// Adds environment variables: `INTERLOCK_SECTION__KEY`, and `INTERLOCK_DATA_DIR`.
    pub(super) fn add_environment(&mut self, variables: &[(String, String)]) {
        for (variable, text) in variables {
            let Some(rest) = variable.strip_prefix("INTERLOCK_") else { continue };
            let origin = Origin::Environment(variable.clone());
            let lower = rest.to_ascii_lowercase();
            let setting = match lower.split_once("__") {
                _ if rest == "DATA_DIR" => schema::find("runtime", "data_dir"),
                Some((section, key)) => schema::find(section, key),
                // Other variables of ours have no `__`; one that spells a setting with `_` was meant to be it.
                None => match SETTINGS
                    .iter()
                    .find(|setting| lower == format!("{}_{}", setting.section, setting.key))
                {
                    Some(_) => None,
                    None => continue,
                },
            };
            match setting {
                Some(setting) => self.hold(setting, setting.kind.read(text), origin),
                None => {
                    let variables: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
                    let meant = schema::nearest(variable, variables.iter().map(String::as_str));
                    let text = format!(
                        "unknown setting `{variable}`{}",
                        did_you_mean(meant, "see `interlock config show`")
                    );
                    self.refuse(&origin, variable.as_str(), text);
                }
            }
        }
    }

    /// Adds one value from a flag.
    pub(super) fn add_flag(&mut self, flag: &'static str, path: &str, text: &str) {
        let origin = Origin::Flag(flag);
        match path.split_once('.').and_then(|(section, key)| schema::find(section, key)) {
            Some(setting) => self.hold(setting, setting.kind.read(text), origin),
            None => {
                let paths: Vec<String> = SETTINGS.iter().map(Setting::path).collect();
                let meant = schema::nearest(path, paths.iter().map(String::as_str));
                let text =
                    format!("unknown key `{path}`{}", did_you_mean(meant, "see `interlock config show`"));
                self.refuse(&origin, path, text);
            }
        }
    }
}

/// The file's lines are counted where `path` is.
pub(super) fn in_file(path: &Path) -> impl Fn(usize) -> Origin + '_ {
    |line| Origin::File { path: path.to_owned(), line }
}

fn not_allowed(path: &str, value: &Value, setting: &Setting) -> String {
    let wrong = match value {
        Value::Array(items) => {
            let alone = |item: &&Value| !setting.kind.permits(&Value::Array(vec![(*item).clone()]));
            items.iter().filter(alone).map(ToString::to_string).collect()
        }
        _ => Vec::new(),
    };
    let allowed = setting.kind.allowed();
    match (wrong.len(), value.as_array()) {
        (1.., Some(items)) if wrong.len() < items.len() => {
            let wrong = wrong.iter().map(|item| printed(item));
            format!(
                "`{path}` holds {}; allowed: {allowed}",
                backticked(wrong.collect::<Vec<_>>().iter().map(String::as_str))
            )
        }
        _ => format!("`{path}` is `{}`; allowed: {allowed}", printed(&value.to_string())),
    }
}

/// A value on one line, and not too long.
fn printed(value: &str) -> String {
    let cut = value.floor_char_boundary(100);
    let more = if cut < value.len() { "..." } else { "" };
    format!("{}{more}", value[..cut].replace('\n', " "))
}

fn unknown_key(section: &str, key: &str) -> String {
    let keys = || {
        SETTINGS.iter().chain(PROGRAM).filter(|setting| setting.section == section).map(|setting| setting.key)
    };
    let all = format!("the keys of this section are {}", backticked(keys()));
    let elsewhere = SETTINGS.iter().find(|setting| setting.key == key).map(Setting::path);
    let meant = schema::nearest(key, keys()).map(|key| format!("{section}.{key}")).or(elsewhere);
    format!("unknown key `{section}.{key}`{}", did_you_mean(meant.as_deref(), &all))
}

fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    SETTINGS
        .iter()
        .map(|setting| setting.section)
        .filter(move |section| std::mem::replace(&mut last, section) != *section)
        .chain(["program"])
}

fn unknown_section(name: &str) -> String {
    let all = format!("the sections are {}", backticked(sections()));
    format!("unknown section `{name}`{}", did_you_mean(schema::nearest(name, sections()), &all))
}

fn unknown_top_level(name: &str) -> String {
    match SETTINGS.iter().find(|setting| setting.key == name) {
        Some(setting) => format!(
            "unknown key `{name}`; did you mean `{}`? write it below `[{}]`",
            setting.path(),
            setting.section
        ),
        None => format!(
            "unknown key `{name}`; every key belongs to a section, the sections are {}",
            backticked(sections())
        ),
    }
}

pub(super) fn backticked<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

pub(super) fn did_you_mean(meant: Option<&str>, otherwise: &str) -> String {
    match meant {
        Some(meant) => format!("; did you mean `{meant}`?"),
        None => format!("; {otherwise}"),
    }
}
