//! `bus doctor` on an installation that is well, and on ones that are not.

use std::{fs::Permissions as Mode, os::unix::fs::PermissionsExt, path::Path};

use super::*;
use crate::Credentials;

/// An instance as the runtime leaves it: everything its owner's alone.
fn well() -> Fixture {
    let fixture = fixture();
    set_mode(fixture.directory.path(), 0o700);
    set_mode(&fixture.directory.path().join("run"), 0o700);
    fixture
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Mode::from_mode(mode)).unwrap();
}

/// The exit code, and each finding's level, what was found and what to do, by its check.
fn diagnosis(directory: &Path) -> (Exit, Vec<serde_json::Value>) {
    let (exit, data, _) = bus_in(directory, &["doctor", "--json", "--timeout", "5s"]);
    (exit, data.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn of<'a>(findings: &'a [serde_json::Value], check: &str, level: &str) -> Option<&'a serde_json::Value> {
    findings.iter().find(|finding| finding["check"] == check && finding["level"] == level)
}

#[test]
fn doctor_finds_an_instance_well_that_is_and_shows_no_secret() {
    let fixture = well();
    let (exit, findings) = diagnosis(fixture.directory.path());
    assert_eq!(exit, Exit::Done, "{findings:#?}");
    let checks = [
        "files.data",
        "files.keys",
        "files.run",
        "files.private",
        "keys.credentials",
        "keys.broker",
        "keys.registered",
        "registry.file",
        "registry.expiry",
        "registry.unused",
        "endpoints.session",
        "broker.ping",
        "versions",
        "clock",
        "broker.sessions",
        "broker.ledger",
        "broker.drops",
        "broker.refusals",
        "broker.slow",
        "broker.gates",
        "topics.unheard",
        "topics.silent",
        "limits.core",
        "disk.inodes",
    ];
    for check in checks {
        assert!(of(&findings, check, "ok").is_some(), "{check}: {findings:#?}");
    }
    // `alice` of the fixture may do everything.
    let rights = of(&findings, "registry.rights", "warn").unwrap();
    assert!(
        rights["found"].as_str().unwrap().contains("alice") && rights["do"] == "interlock keys show alice"
    );
    let (_, data, messages) = fixture.bus(&["doctor"]);
    let said = format!("{data}{messages}{findings:?}");
    for name in ["operator", "alice"] {
        let file = Credentials::path_in(&fixture.directory.path().join("keys"), &name.parse().unwrap());
        let secret = Credentials::load(&file).unwrap().keys.secret.expose_z85();
        assert!(!said.contains(secret.as_str()), "{name}");
    }
    assert!(messages.contains(" ok, ") && messages.contains(" 0 failures"), "{messages}");
}

#[test]
fn doctor_names_what_is_wrong_offline_with_the_command_that_mends_it() {
    let fixture = well();
    let directory = fixture.directory.path();
    let key = directory.join("keys/operator.toml");
    set_mode(&key, 0o644);
    let (exit, findings) = diagnosis(directory);
    assert_eq!(exit, Exit::Misuse);
    let exposed = of(&findings, "files.private", "fail").unwrap();
    assert_eq!(exposed["do"], format!("chmod 600 {}", key.display()));
    set_mode(&key, 0o600);
    set_mode(&directory.join("keys"), 0o755);
    assert_eq!(of(&diagnosis(directory).1, "files.keys", "fail").unwrap()["code"], Exit::Misuse.code());
    set_mode(&directory.join("keys"), 0o700);

    // Credentials of another installation.
    let (other, ours) = (well(), Credentials::load(&key).unwrap());
    let theirs = Credentials::load(&other.directory.path().join("keys/operator.toml")).unwrap();
    Credentials { broker: theirs.broker, ..ours.clone() }.save(&key).unwrap();
    let (exit, findings) = diagnosis(directory);
    assert_eq!(exit, Exit::Denied);
    let wrong = of(&findings, "keys.broker", "fail").unwrap();
    assert_eq!(wrong["do"], format!("interlock keys renew {}", key.display()));
    ours.save(&key).unwrap();

    // Nobody listens: what can be seen without a broker is still seen.
    fixture.broker.stop(Duration::from_secs(1));
    let socket = directory.join("run/bus.sock");
    let _ = std::fs::remove_file(&socket);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (exit, findings) = diagnosis(directory);
    assert_eq!(exit, Exit::NotReady, "{findings:#?}");
    let stale = of(&findings, "endpoints.session", "fail").unwrap();
    assert!(stale["found"].as_str().unwrap().contains("stale") && stale["do"] == "interlock run");
    assert!(of(&findings, "keys.registered", "ok").is_some() && of(&findings, "disk.inodes", "ok").is_some());
    assert!(!findings.iter().any(|finding| finding["check"] == "broker.ping"));

    // Worse than that nothing runs.
    std::fs::write(directory.join("keys/authorized.toml"), "this is no registry").unwrap();
    let (exit, findings) = diagnosis(directory);
    assert_eq!(exit, Exit::Damaged);
    assert!(of(&findings, "registry.file", "fail").unwrap()["found"].as_str().unwrap().contains("line 1"));

    let (exit, findings) = diagnosis(&directory.join("nowhere"));
    assert_eq!(exit, Exit::NotReady);
    assert_eq!(of(&findings, "files.data", "fail").unwrap()["do"], "interlock run");
}

#[test]
fn doctor_warns_of_what_the_broker_saw_and_still_ends_well() {
    let fixture = well();
    // Dropped: nobody reads a queue of one.
    let options = SubscribeOptions::default().overflow(crate::native::Overflow::DropNewest).queue(1, 65_536);
    let _held = blocking::wait(fixture.client.subscribe(&"a/b".parse().unwrap(), options)).unwrap();
    for _ in 0..16 {
        let large = Payload::bytes(vec![0; 1 << 20]);
        blocking::wait(fixture.client.publish_acknowledged(&topic("a/b"), large, PublishOptions::default()))
            .unwrap();
    }
    // Nearly the name that somebody waits for.
    assert_eq!(fixture.bus(&["pub", "orders/new", "x"]).0, Exit::Done);
    let waiting = SubscribeOptions::default();
    let _waiting = blocking::wait(fixture.client.subscribe(&"order/new".parse().unwrap(), waiting)).unwrap();
    // An edit that is refused.
    let registry = fixture.directory.path().join("keys/authorized.toml");
    let before = std::fs::read_to_string(&registry).unwrap();
    let warned = (0..2000).find_map(|_| {
        let (exit, findings) = diagnosis(fixture.directory.path());
        assert_eq!(exit, Exit::Done, "{findings:#?}");
        of(&findings, "broker.drops", "warn").cloned().map(|drops| (drops, findings))
    });
    let (drops, findings) = warned.expect("the broker tells what was dropped");
    assert!(
        drops["found"].as_str().unwrap().contains("`a/b` to `alice`") && drops["do"] == "bus info a/b",
        "{drops}"
    );
    let unheard = of(&findings, "topics.unheard", "warn").unwrap();
    assert!(unheard["found"].as_str().unwrap().contains("did you mean order/new?"), "{unheard}");
    std::fs::write(&registry, "nonsense").unwrap();
    set_mode(&registry, 0o600);
    let (exit, _) = diagnosis(fixture.directory.path());
    assert_eq!(exit, Exit::Damaged);
    std::fs::write(&registry, before).unwrap();
}
