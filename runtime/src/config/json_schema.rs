//! The configuration as a JSON Schema (draft 2020-12), for editors. Made from the same list as the validator; texts and
//! defaults are those of `interlock.toml`.

use serde_json::{Map, Value, json};

use super::{
    Config, Sources,
    schema::{self, Effect, Setting},
};

/// The schema of `interlock.toml`.
pub fn json_schema() -> Value {
    let mut properties = Map::new();
    // The built-in file is valid; a test loads it.
    let defaults = Config::load(&Sources::default()).map(|loaded| loaded.held).unwrap_or_default();
    for setting in schema::SETTINGS {
        let section = properties
            .entry(setting.section)
            .or_insert_with(|| json!({ "type": "object", "additionalProperties": false, "properties": {} }));
        let mut key = described(setting);
        key["default"] = json!(defaults.get(&setting.path()).map(|held| &held.value));
        section["properties"][setting.key] = key;
    }
    let program: Map<_, _> =
        schema::PROGRAM.iter().map(|setting| (setting.key.to_owned(), described(setting))).collect();
    properties.insert(
        "program".to_owned(),
        json!({
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": false,
                "required": schema::PROGRAM_REQUIRED,
                "properties": program,
            },
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "interlock.toml",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

fn described(setting: &Setting) -> Value {
    let mut value = setting.kind.json_schema();
    value["description"] = schema::comment(setting).into();
    value["x-takes-effect"] = match setting.effect {
        Effect::AtOnce => "at once".into(),
        Effect::Restarts(components) => format!("restarts {}", components.join(" and ")).into(),
        Effect::NextStart => "at the next start".into(),
    };
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_the_schema_with_its_text_and_default() {
        let schema = json_schema();
        for setting in schema::SETTINGS {
            let key = &schema["properties"][setting.section]["properties"][setting.key];
            assert!(key["description"].as_str().is_some_and(|text| text.contains("Default")), "{key}");
            assert!(!key["default"].is_null(), "{}: {key}", setting.path());
        }
        let program = &schema["properties"]["program"]["items"];
        for setting in schema::PROGRAM {
            let text = program["properties"][setting.key]["description"].as_str().unwrap();
            assert!(text.contains("Default") || text.contains("Required"), "{}: {text}", setting.key);
        }
        assert_eq!(program["required"], json!(schema::PROGRAM_REQUIRED));
        assert_eq!(schema["properties"]["logs"]["properties"]["level"]["enum"][0], "trace");
        assert_eq!(schema["properties"]["logs"]["properties"]["level"]["x-takes-effect"], "at once");
    }
}
