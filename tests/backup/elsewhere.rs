//! Restoring into another place: where the configuration goes, how it is started, whom credentials lead to.

use interlock_bus::{Client, ConnectOptions, Credentials};

use super::*;
use crate::harness::{DEADLINE, TestProcess};

/// The command that a restore ends with, on this installation's home.
fn started_as_said(said: &str, place: &Place) -> TestProcess {
    let words = said.split("start it with: interlock ").nth(1).unwrap_or_else(|| panic!("{said}"));
    let words = words.lines().next().unwrap();
    let mut command = tool("interlock");
    command.arg("run").args(words.split_whitespace());
    command.env("HOME", place.directory.path()).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
    let process = TestProcess::spawn(command);
    while !process.line().contains("gateway       running") {}
    process
}

fn connects(file: &Path) -> bool {
    let options = ConnectOptions::new(Credentials::load(file).unwrap()).timeout(DEADLINE);
    Client::connect_blocking(options).is_ok()
}

#[test]
fn a_restored_installation_starts_as_is_said_and_its_credentials_lead_to_it_and_not_to_the_old_place() {
    let runtime = TestRuntime::start();
    let place = Place { directory: tempfile::tempdir().unwrap(), data: runtime.data() };
    place.passphrase_file("passphrase", PASSPHRASE);
    let outside = place.path("outside.toml");
    for more in [&["inside", "--publish", "a"][..], &["outside", "--publish", "a", "--out"]] {
        let mut issue = place.command(&["keys", "issue"]);
        issue.args(more);
        if more.contains(&"--out") {
            issue.arg(&outside);
        }
        assert!(issue.output().unwrap().status.success());
    }
    let file = place.path("b.ilbk");
    // Nobody names the configuration file: the instance knows it.
    let made = place.backup("create", &file, &[], 0);
    assert!(made.contains("and the configuration"), "{made}");
    // The old instance goes on: whoever is led to its socket would connect to it, or be refused there.
    let old_socket = format!("ipc://{}", runtime.data().join("run/bus.sock").display());

    let elsewhere = Place::bare();
    let said = elsewhere.backup("restore", &file, &[], 0);
    assert!(said.contains("those of `outside` lie elsewhere"), "{said}");
    assert!(!elsewhere.path(".config").exists(), "the user's own file is about another installation");
    let config = fs::read_to_string(elsewhere.data.join("interlock.toml")).unwrap();
    assert!(config.contains("[gateway]"), "{config}");
    let mut process = started_as_said(&said, &elsewhere);

    let socket = format!("ipc://{}", elsewhere.data.join("run/bus.sock").display());
    let named = |file: &Path| Credentials::load(file).unwrap().endpoints[0].to_string();
    let inside = elsewhere.data.join("keys/inside.toml");
    assert_eq!(named(&inside), socket);
    assert!(connects(&inside));
    // The old one has no part in it: it does not even have to be there.
    drop(runtime);
    assert_eq!(named(&outside), old_socket);
    for what in [format!("names `{socket}`"), "was up to date".to_owned()] {
        let renewed = elsewhere.command(&["keys", "renew"]).arg(&outside).output().unwrap();
        let renewed = super::said(&renewed);
        assert!(renewed.contains(&what), "{renewed}");
    }
    assert_eq!(named(&outside), socket);
    assert!(connects(&outside));
    // And what is there is what the next backup has.
    let made = elsewhere.backup("create", &elsewhere.path("next.ilbk"), &[], 0);
    assert!(made.contains("and the configuration"), "{made}");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.exit_code(), Some(0));
    let made = elsewhere.backup("create", &elsewhere.path("stopped.ilbk"), &[], 0);
    assert!(made.contains("and the configuration"), "{made}");
}

#[test]
fn a_configuration_file_that_is_named_and_not_there_is_the_place_for_that_of_the_backup() {
    let (config, file, _place) = backup_with_configuration();
    let elsewhere = Place::bare();
    let [by_flag, by_variable] = ["new/place.toml", "other.toml"].map(|name| elsewhere.path(name));
    let flag = ["--config", by_flag.to_str().unwrap()];
    // A drill makes nothing.
    elsewhere.backup("restore", &file, &[&flag[..], &["--dry-run"]].concat(), 0);
    assert!(!by_flag.exists() && !elsewhere.data.exists());
    let said = elsewhere.backup("restore", &file, &flag, 0);
    let start = format!(
        "start it with: interlock --config {} --data-dir {}",
        by_flag.display(),
        elsewhere.data.display()
    );
    assert!(said.contains(&start), "{said}");
    let mut command = elsewhere.command(&["backup", "restore"]);
    let restored = command.arg(&file).env("INTERLOCK_CONFIG", &by_variable).output().unwrap();
    assert!(restored.status.success(), "{}", super::said(&restored));
    // Another shell does not have the variable.
    let start = start.replace("new/place.toml", "other.toml");
    assert!(super::said(&restored).contains(&start), "{}", super::said(&restored));
    for path in [by_flag, by_variable] {
        assert_eq!(fs::read_to_string(&path).unwrap(), fs::read_to_string(&config).unwrap());
    }
    assert!(!elsewhere.path(".config").exists());
}

#[test]
fn what_nobody_names_is_restored_where_it_is_found_without_a_flag() {
    let (_, file, _place) = backup_with_configuration();
    let elsewhere = Place::bare();
    let mut command = tool("interlock");
    command.args(["backup", "restore"]).arg(&file).env("HOME", elsewhere.directory.path());
    command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
    command.env("INTERLOCK_BACKUP_PASSPHRASE_FILE", elsewhere.path("passphrase"));
    let restored = super::said(&command.output().unwrap());
    assert!(restored.contains("start it with: interlock\n"), "{restored}");
    assert!(elsewhere.path(".config/interlock/interlock.toml").exists());
    assert!(elsewhere.path(".local/share/interlock/interlock.db").exists());
}

#[test]
fn a_restore_that_is_refused_leaves_no_directory_that_it_made() {
    let place = Place::new();
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let mut elsewhere = Place::bare();
    let other = elsewhere.passphrase_file("other", "another horse battery");
    let wrong = ["--passphrase-file", other.to_str().unwrap()];
    elsewhere.data = elsewhere.path("new/deep/data");
    elsewhere.backup("restore", &file, &wrong, 4);
    assert!(!elsewhere.path("new").exists());
    // What was there stays as it was.
    fs::create_dir_all(elsewhere.path("new/deep")).unwrap();
    fs::write(elsewhere.path("new/letter"), "dear").unwrap();
    elsewhere.backup("restore", &file, &wrong, 4);
    assert_eq!(
        (names(&elsewhere.path("new")), names(&elsewhere.path("new/deep"))),
        (vec!["deep".into(), "letter".into()], vec![])
    );
    let before = live(&place);
    place.backup("restore", &file, &wrong, 4);
    assert!(place.data.join("run/instance.lock").exists() && live(&place) == before);
    elsewhere.backup("restore", &file, &[], 0);
    elsewhere.is_well();
}

#[test]
fn a_configuration_that_would_be_lost_among_what_a_restore_exchanges_is_refused_before_anything_is_done() {
    let (_, file, _place) = backup_with_configuration();
    let mut elsewhere = Place::bare();
    elsewhere.data = elsewhere.path("z4/r9");
    for name in ["z4/r9/keys/weak.toml", "z4/r9/interlock.db", "z4/r9/run/x.toml", "z4"] {
        let target = elsewhere.path(name);
        let said = elsewhere.backup("restore", &file, &["--config", target.to_str().unwrap()], 2);
        assert!(
            said.contains(name) && said.contains("nothing was done") && said.contains("--config"),
            "{said}"
        );
        assert!(!elsewhere.path("z4").exists());
    }
    let said = elsewhere.backup(
        "restore",
        &file,
        &["--config", elsewhere.path("z4/r9/weak.toml").to_str().unwrap()],
        0,
    );
    assert!(said.contains("weak.toml"), "{said}");
    elsewhere.is_well();
}

#[test]
fn a_wrong_passphrase_counts_for_the_users_own_installation_where_nothing_is_installed_yet_or_waits() {
    let place = Place::new();
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let mut elsewhere = Place::bare();
    let other = elsewhere.passphrase_file("other", "another horse battery");
    let wrong = ["--passphrase-file", other.to_str().unwrap()];
    let began = std::time::Instant::now();
    elsewhere.backup("restore", &file, &wrong, 4);
    assert!(began.elapsed().as_secs() >= 1, "nobody counted it, and it did not wait");
    elsewhere.data = elsewhere.path(".local/share/interlock");
    assert!(elsewhere.interlock(&["db", "init"]).status.success());
    elsewhere.data = elsewhere.path("new");
    for _ in 0..3 {
        elsewhere.backup("restore", &file, &wrong, 4);
    }
    let said = elsewhere.backup("restore", &file, &[], 0);
    assert!(said.contains("this one waits 1 s"), "{said}");
}

#[test]
fn what_a_killed_restore_left_goes_with_each_verb_that_looks_at_the_installation() {
    let place = Place::new();
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let left = place.data.join(format!("restore.tmp-{}", "0".repeat(32)));
    for arguments in [&["backup", "list"][..], &["backup", "verify", file.to_str().unwrap()]] {
        fs::create_dir(&left).unwrap();
        fs::write(left.join("interlock.db"), "left").unwrap();
        let output = place.interlock(arguments);
        assert!(output.status.success() && !left.exists(), "{arguments:?}: {}", super::said(&output));
        assert!(super::said(&output).contains("1 were wiped"), "{}", super::said(&output));
    }
}

/// A configuration file, and a backup that has it; both go with the place.
fn backup_with_configuration() -> (PathBuf, PathBuf, Place) {
    let place = Place::new();
    let config = place.path("my.toml");
    fs::write(&config, "[logs]\nlevel = \"debug\"\n").unwrap();
    let file = place.path("b.ilbk");
    place.backup("create", &file, &["--config", config.to_str().unwrap()], 0);
    (config, file, place)
}
