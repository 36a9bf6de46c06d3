use std::collections::BTreeSet;

use super::*;

fn load(file: &str) -> Result<Loaded, ConfigError> {
    load_with(file, &[], &[])
}

fn load_with(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("interlock.toml");
    std::fs::write(&path, file).unwrap();
    Config::load(&Sources {
        file: Some(path),
        environment: environment
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
        flags: flags.iter().map(|(path, text)| ("--set", (*path).to_owned(), (*text).to_owned())).collect(),
        actors: Vec::new(),
    })
}

fn refusal(file: &str) -> String {
    load(file).unwrap_err().to_string()
}

/// The example of `[[program]]` in `interlock.toml`, uncommented.
fn example_program() -> String {
    let block = DEFAULTS.split_once("# [[program]]").unwrap().1;
    let lines = block.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
    format!("[[program]]\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_file_holds_every_key_and_equals_the_defaults() {
    let loaded = Config::load(&Sources::default()).unwrap();
    let expected: BTreeSet<String> = schema::SETTINGS.iter().map(schema::Setting::path).collect();
    assert_eq!(loaded.held.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(loaded.config, Config::defaults());
    assert_eq!(load(DEFAULTS).unwrap().config, Config::defaults());
}

#[test]
fn the_type_has_exactly_the_keys_of_the_list() {
    let with_program = load(&example_program()).unwrap().config;
    let value = Value::try_from(&with_program).unwrap();
    let mut keys = BTreeSet::new();
    for (section, content) in value.as_table().unwrap() {
        let table = content.as_table().or_else(|| content[0].as_table()).unwrap();
        keys.extend(table.keys().map(|key| format!("{section}.{key}")));
    }
    let expected = schema::SETTINGS.iter().chain(schema::PROGRAM).map(schema::Setting::path).collect();
    assert_eq!(keys, expected);
}

#[test]
fn every_default_is_commented_with_its_value() {
    for setting in schema::SETTINGS {
        let line = format!("\n{} = ", setting.key);
        let section = DEFAULTS.split_once(&format!("\n[{}]", setting.section)).unwrap().1;
        let (above, below) = section.split_once(&line).unwrap();
        let value = below.lines().next().unwrap();
        let comment: String = above.lines().rev().take_while(|line| line.starts_with('#')).collect();
        assert!(comment.contains(&format!("Default: {value}")), "{}: {comment}", setting.path());
    }
}

#[test]
fn the_example_program_names_every_key_and_is_valid() {
    let loaded = load(&example_program()).unwrap();
    let program = &loaded.config.programs[0];
    assert_eq!(program.name.as_str(), "greeter");
    let table: toml::Table = toml::from_str(&example_program()).unwrap();
    let keys: Vec<&str> = table["program"][0].as_table().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), schema::PROGRAM.len());
    let bare = load("[[program]]\nname = \"greeter\"\ncommand = \"python3\"\n").unwrap();
    for setting in schema::PROGRAM {
        let comment = DEFAULTS.split_once(&format!("\n# {} = ", setting.key)).unwrap().0;
        let comment = comment.rsplit("\n# ").next().unwrap();
        let value = Value::try_from(&bare.config.programs[0]).unwrap();
        let default = match setting.key {
            "name" | "command" => "Required".to_owned(),
            "environment" => "Default: none".to_owned(),
            key => format!("Default: {}", value[key]),
        };
        assert!(comment.contains(&default), "{}: {comment} lacks {default}", setting.key);
    }
}

#[test]
fn a_later_layer_wins_and_each_value_remembers_its_layer() {
    let file = "[gateway]\nlisten = \"127.0.0.1:1\"\nworkers = 2\nstreams_max = 3\n";
    let environment =
        [("INTERLOCK_GATEWAY__WORKERS", "4"), ("INTERLOCK_GATEWAY__STREAMS_MAX", "5"), ("HOME", "/")];
    let loaded = load_with(file, &environment, &[("gateway.streams_max", "6")]).unwrap();

    let gateway = &loaded.config.gateway;
    assert_eq!((gateway.listen.port(), gateway.workers, gateway.streams_max), (1, 4, 6));
    assert!(matches!(loaded.held["gateway.listen"].origin, Origin::File { line: 2, .. }));
    assert_eq!(
        loaded.held["gateway.workers"].origin,
        Origin::Environment("INTERLOCK_GATEWAY__WORKERS".to_owned())
    );
    assert_eq!(loaded.held["gateway.streams_max"].origin, Origin::Flag("--set"));
    assert_eq!(loaded.held["gateway.body_bytes_max"].origin, Origin::Default);
    assert_eq!(show::changed(&loaded), 3);
}

#[test]
fn every_setting_can_be_set_from_every_layer() {
    for setting in schema::SETTINGS {
        let default = Config::load(&Sources::default()).unwrap().held[&setting.path()].value.clone();
        let text = match &default {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let by_file = format!("[{}]\n{} = {default}\n", setting.section, setting.key);
        let extra = if setting.key == "back_end" { vec![] } else { vec![(setting.path(), text.clone())] };
        let flags: Vec<(&str, &str)> =
            extra.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let loaded = load_with(&by_file, &[(&setting.variable(), &text)], &flags).unwrap();
        assert_eq!(loaded.held[&setting.path()].value, default, "{}", setting.path());
        assert_ne!(loaded.held[&setting.path()].origin, Origin::Default);
    }
}

#[test]
fn all_mistakes_are_reported_at_once_with_line_key_value_and_what_is_allowed() {
    let error = load_with(
        "[gateway]\nlisten = \"localhost\"\nworker = 2\n\n[shutdwn]\ndrain = \"1s\"\n\n[logs]\nlevel = \"loud\"\n",
        &[("INTERLOCK_GATEWAY__WORKERS", "many"), ("INTERLOCK_GATWAY__WORKERS", "1"), ("INTERLOCK_GATEWAY_LISTEN", "x")],
        &[("gateway.streams", "1")],
    )
    .unwrap_err();
    let text = error.to_string();
    let expected = [
        "interlock.toml:2: `gateway.listen` is `\"localhost\"`; allowed: an IP address and port",
        "interlock.toml:3: unknown key `gateway.worker`; did you mean `gateway.workers`?",
        "interlock.toml:5: unknown section `shutdwn`; did you mean `shutdown`?",
        "interlock.toml:9: `logs.level` is `\"loud\"`; allowed: \"trace\", \"debug\"",
        "INTERLOCK_GATEWAY__WORKERS: `gateway.workers` is `\"many\"`; allowed: a whole number from 1 to 64",
        "unknown setting `INTERLOCK_GATWAY__WORKERS`; did you mean `INTERLOCK_GATEWAY__WORKERS`?",
        "unknown setting `INTERLOCK_GATEWAY_LISTEN`; did you mean `INTERLOCK_GATEWAY__LISTEN`?",
        "--set: unknown key `gateway.streams`; did you mean `gateway.streams_max`?",
    ];
    for part in expected {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert_eq!(error.problems.len(), expected.len(), "{text}");
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    for (file, says) in [
        ("[shutdown]\ndrain = \"2m\"", "must be longer than `shutdown.drain`"),
        ("[shutdown]\nforced = \"60s\"", "must be longer than `shutdown.drain`"),
        ("[model]\nback_end = \"openai\"\nurl = \"\"", "needs `model.url`"),
        ("[model]\napi_key_file = \"a\"\napi_key_env = \"B\"", "both set"),
        (
            "[model]\nfallback = [\"x\"]",
            "`model.fallback` has \"x\"; allowed: names of `[[model.models]]`, each once, of which there are []",
        ),
        (
            "[model]\nurl = \"http://h/v1\"\n[[model.models]]\nname = \"a\"\nback_end = \"script\"",
            "2: `model.url` is for a single model",
        ),
        (
            "[[model.models]]\nname = \"a\"\nback_end = \"script\"\n[[model.models]]\nname = \"a\"\nback_end = \"script\"",
            "`model.models` has `a` twice",
        ),
        (
            "[[model.models]]\nname = \"a\"\nback_end = \"x\"",
            "1: `model.models`: `back_end` is `\"x\"`; allowed: \"script\"",
        ),
        ("[[model.models]]\nname = \"a\"\nback_end = \"openai\"\nmodel = \"m\"", "which needs a `url`"),
        (
            "[model]\nback_end = \"ollama\"\nurl = \"\"",
            "`model.back_end` is `ollama`, which needs `model.url`",
        ),
        ("[[program]]\nname = \"a\"", "has no `command`"),
        ("[[program]]\nname = \"gateway\"\ncommand = \"a\"", "built-in component"),
        (
            "[[program]]\nname = \"a\"\ncommand = \"a\"\n[[program]]\nname = \"a\"\ncommand = \"b\"",
            ":2; each program",
        ),
        ("[program]\nname = \"a\"", "[[program]]"),
        (
            "[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"b\"]\n[[program]]\nname = \"b\"\ncommand = \"x\"\nneeds = [\"a:started\"]",
            "4: the programs wait for each other in a circle: a -> b -> a",
        ),
        (
            "[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"b\"]\n[[program]]\nname = \"b\"\ncommand = \"x\"",
            "which stands below it",
        ),
        (
            "[[program]]\nname = \"b\"\ncommand = \"x\"\n[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"b:completed\"]",
            "`b` is permanent and never completes",
        ),
        ("[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"model:log:x\"]", "only programs complete"),
        (
            "[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"modle\"]",
            "`program.needs` of `a` has `modle`, which is no component; did you mean `model`?",
        ),
        (
            "[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"operator\"]",
            "`operator`, which is no component; there are `broker`, ",
        ),
        (
            "[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"store\", \"model:healty\"]",
            "`program.needs` holds `\"model:healty\"`; allowed: ",
        ),
        ("listen = \"127.0.0.1:1\"", "did you mean `gateway.listen`? write it below `[gateway]`"),
        ("[gateway]\nlevel = 1", "did you mean `logs.level`"),
        ("gateway = 1", "write `[gateway]`"),
        ("[gateway\nlisten = 1", "1: not valid TOML"),
        ("[gateway]\nworkers = 1\nworkers = 2", "3: not valid TOML"),
    ] {
        let message = refusal(file);
        assert!(message.contains(says), "{file}: {message}");
    }
}

#[test]
fn a_changed_file_is_taken_over_as_far_as_it_can_be_without_a_new_start() {
    let program = |more: &str| format!("[[program]]\nname = \"a\"\ncommand = \"b\"\n{more}");
    let old = load(&program("publish = [\"x\"]\n")).unwrap();
    let new = load(&format!(
        "[logs]\nlevel = \"debug\"\n[model]\ntokens_max = 7\n[bus]\nsessions_max = 100\n{}{}",
        program("publish = [\"y\"]\ngrace = \"3s\"\n"),
        program("").replace("\"a\"", "\"c\"")
    ))
    .unwrap();
    let (now, report) = old.adopt(&new).unwrap();
    assert_eq!((now.config.logs.level.as_str(), now.config.model.tokens_max), ("debug", 7));
    assert_eq!(now.config.bus, old.config.bus);
    assert_eq!(now.config.programs.len(), 1);
    assert_eq!(now.config.programs[0].publish, new.config.programs[0].publish);
    assert_eq!(now.config.programs[0].grace, old.config.programs[0].grace);
    let keys: Vec<&str> = report.changed.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys, ["model.tokens_max", "logs.level", "rights of program `a`"]);
    assert_eq!(report.restarted, BTreeSet::from(["model".to_owned()]));
    assert_eq!(report.next_start, ["bus.sessions_max", "program `a`", "program `c`, which is new"]);
    let (_, nothing) = now.adopt(&now).unwrap();
    assert_eq!(nothing, live::ReloadReport::default());
}

#[test]
fn settings_that_are_judged_together_take_effect_together() {
    let effect = |path: &str| {
        let (section, key) = path.split_once('.').unwrap();
        schema::find(section, key).unwrap().effect
    };
    assert_eq!(effect("shutdown.drain"), effect("shutdown.forced"));
    assert_eq!(effect("model.back_end"), effect("model.url"));
    assert_eq!(effect("model.api_key_file"), effect("model.api_key_env"));
}

#[test]
fn the_file_says_which_settings_take_effect_without_a_new_start() {
    let text = DEFAULTS.split_once("\n[runtime]").unwrap().0.replace("\n# ", " ");
    for setting in schema::SETTINGS {
        let named = text.contains(&format!("{}.*", setting.section)) || text.contains(&setting.path());
        let excepted = text.contains(&format!("not {}", setting.path()));
        let live = setting.effect != schema::Effect::NextStart;
        assert_eq!(live, named && !excepted, "{}", setting.path());
    }
}

#[test]
fn an_actor_of_the_user_can_be_needed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("interlock.toml");
    std::fs::write(&file, "[[program]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"greeter\"]\n").unwrap();
    let load = |actors: &[&str]| {
        let actors = actors.iter().map(|name| (*name).to_owned()).collect();
        Config::load(&Sources { file: Some(file.clone()), actors, ..Sources::default() })
    };
    load(&["greeter"]).unwrap();
    let error = load(&["greeters"]).unwrap_err().to_string();
    assert!(error.contains("interlock.toml:4: ") && error.contains("did you mean `greeters`?"), "{error}");
}

#[test]
fn mistakes_come_in_the_order_of_their_lines() {
    let file = "[shutdown]\ndrain = \"10m\"\nforced = \"1m\"\n[model]\nbad = 1\n[gateway]\nworkers = 0\nbad = 1\n[[program]]\nname = \"store\"\n";
    let error = load_with(file, &[("INTERLOCK_LOGS__LEVEL", "x")], &[("bus.bad", "x")]).unwrap_err();
    let text = error.to_string();
    let at = |line: &str| match line.split_once("interlock.toml:") {
        Some((_, rest)) => rest.split(':').next().unwrap().to_owned(),
        None => line.split(':').next().unwrap().to_owned(),
    };
    let places: Vec<String> = text.lines().map(at).collect();
    assert_eq!(places, ["3", "5", "7", "8", "9", "10", "INTERLOCK_LOGS__LEVEL", "--set"], "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(&Sources { file: Some("/nonexistent/a.toml".into()), ..Sources::default() })
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/a.toml"), "{error}");
}

#[test]
fn a_difference_shows_what_is_not_the_default_and_nothing_else() {
    let file = "[gateway]\nworkers = 2\nstreams_max = 256\n[[program]]\nname = \"a\"\ncommand = \"b\"\n";
    let loaded = load(file).unwrap();
    let text = show::difference(&loaded);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("gateway.workers = 2 ") && lines[0].contains("# default 1; "), "{text}");
    assert!(lines[0].ends_with("interlock.toml:2") && lines[1].starts_with("program a "), "{text}");
    assert_eq!(show::difference_json(&loaded)["settings"]["gateway.workers"]["default"], 1);
    assert_eq!(show::difference(&Config::load(&Sources::default()).unwrap()), "");
}

#[test]
fn what_is_shown_is_valid_and_hides_values_that_may_be_secrets() {
    let file = "[[program]]\nname = \"a\"\ncommand = \"b\"\nenvironment = { TOKEN = \"hunter2\" }\n";
    let loaded = load(file).unwrap();
    for shown in [show::toml(&loaded), show::json(&loaded).to_string()] {
        assert!(!shown.contains("hunter2") && shown.contains("(hidden)"), "{shown}");
    }
    let mut again = load(&show::toml(&loaded)).unwrap().config;
    again.programs[0].environment.insert("TOKEN".to_owned(), "hunter2".to_owned());
    assert_eq!(again, loaded.config);
    let wrong = refusal("[[program]]\nname = \"a\"\ncommand = \"b\"\nenvironment = [\"hunter2\"]\n");
    assert!(!wrong.contains("hunter2"), "{wrong}");
}

#[test]
fn the_routes_of_the_outbox_are_read_from_every_layer_and_each_mistake_is_told_with_its_line() {
    let file = "[[outbox.topics]]\nfilter = \"orders/#\"\nconsumers = [\"billing\", \"stock\"]\n\n\
                [[outbox.topics]]\nfilter = \"audit/+\"\nconsumers = [\"books\"]\n";
    let routes = load(file).unwrap().config.outbox.topics;
    assert_eq!(routes[0].filter.as_str(), "orders/#");
    assert_eq!(routes[0].consumers.iter().map(PeerName::as_str).collect::<Vec<_>>(), ["billing", "stock"]);
    assert_eq!(routes.len(), 2);
    let variable = ("INTERLOCK_OUTBOX__TOPICS", "[{ filter = \"orders/#\", consumers = [\"one\"] }]");
    let routes = load_with(file, &[variable], &[]).unwrap().config.outbox.topics;
    assert_eq!((routes.len(), routes[0].consumers[0].as_str()), (1, "one"));

    let refusal = refusal(
        "[[outbox.topics]]\nfilter = \"orders//new\"\nconsumers = []\n\n\
         [[outbox.topics]]\nfilter = \"a\"\nconsumers = [\"b\", \"b\", \"c/d\"]\nmore = 1\n\n\
         [[outbox.topics]]\n[outbox]\nretry_base = \"2h\"\n",
    );
    for (line, words) in [
        (1, "`orders//new`"),
        (1, "`consumers` is `[]`"),
        (5, "`\"b\"` twice"),
        (5, "`\"c/d\"`"),
        (5, "unknown key `more`"),
    ] {
        let told = |text: &&str| text.contains(&format!("interlock.toml:{line}: ")) && text.contains(words);
        assert!(refusal.lines().any(|text| told(&text)), "line {line}, {words}: {refusal}");
    }
}

#[test]
fn routes_of_the_bus_itself_and_to_the_outbox_are_refused_from_every_layer_with_value_and_way_out() {
    let own = "filter = \"$sys/#\"\nconsumers = [\"outbox\", \"b\", \"b\", \"Bad Name\"]\n";
    let from_file = refusal(&format!("[[outbox.topics]]\n{own}"));
    let route = own.replace("\nc", ", c").replace('\n', "");
    let variable = ("INTERLOCK_OUTBOX__TOPICS", format!("[{{ {route} }}]"));
    let from_variable = load_with("", &[(variable.0, &variable.1)], &[]).unwrap_err().to_string();
    for (refusal, place) in [(from_file, "interlock.toml:1: "), (from_variable, "INTERLOCK_OUTBOX__TOPICS: ")]
    {
        for words in [
            "`filter` is `\"$sys/#\"`: topics of the bus itself are not published durably; name topics without `$`",
            "`consumers` has `\"outbox\"`, which sends and consumes nothing; name who is to get the messages",
            "`consumers` has `\"b\"` twice; name each once",
            "`consumers` has `\"Bad Name\"`; allowed: 1 to 64 characters",
        ] {
            let told = |text: &&str| text.contains(place) && text.contains(words);
            assert!(refusal.lines().any(|text| told(&text)), "{place}, {words}: {refusal}");
        }
    }
}

#[test]
fn an_outbox_that_could_never_retry_or_never_take_its_largest_message_is_refused() {
    let refused = refusal("[outbox]\nretry_base = \"2h\"\n");
    assert!(refused.contains("`outbox.retry_cap` (\"1h\") must not be shorter"), "{refused}");
    let refused = refusal("[outbox]\nbytes_max = 1000\n");
    assert!(refused.contains("`outbox.bytes_max` (1000) must not be smaller"), "{refused}");
    load("[outbox]\nbytes_max = 0\n").unwrap();
}
