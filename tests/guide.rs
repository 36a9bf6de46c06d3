//! The transcripts of README and guide, done in real terminals as they stand.

use std::{net::TcpListener, os::unix::fs::PermissionsExt, path::Path, process::Command};

use crate::harness::{TestProcess, runtime::binaries};

#[test]
fn the_transcript_of_the_readme_is_what_happens() {
    follow("README.md");
}

#[test]
fn the_guide_of_ten_minutes_is_what_happens() {
    follow("examples/README.md");
}

#[test]
fn a_transcript_that_is_not_what_happens_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let document = directory.path().join("wrong.md");
    for (expected, right) in
        [("one\n...\nfive", true), ("one\ntwo", false), ("o...e\n...", true), ("two\n...", false)]
    {
        let text = format!("```console\n$ seq 1 5 | sed 's/1/one/;s/5/five/'\n{expected}\n```\n");
        std::fs::write(&document, text).unwrap();
        let mut process = transcript(document.to_str().unwrap(), &[], directory.path());
        assert_eq!(process.json()["right"], right, "{expected}");
        assert_eq!(process.exit_code(), Some(i32::from(!right)));
    }
}

/// Does what a document says, on a port and in a home of its own, and compares.
fn follow(document: &str) {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    // Nobody else gets it meanwhile: the system hands out other ports first.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let replaced = [format!("8771={port}"), "cargo run --release=interlock".to_owned()];
    let mut process = transcript(document, &replaced, home.path());
    let mut commands = 0;
    while let Some(line) = process.line_within(crate::harness::DEADLINE * 3) {
        let step: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(step["right"], true, "{document}: {step:#}");
        commands += 1;
    }
    assert_eq!(process.exit_code(), Some(0));
    assert!(commands > 5, "{document} has {commands} commands");
}

fn transcript(document: &str, replaced: &[String], home: &Path) -> TestProcess {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let port = replaced.iter().find_map(|text| text.strip_prefix("8771=")).unwrap_or("0");
    let mut command = Command::new("python3");
    command
        .arg(root.join("tests/python/transcript.py"))
        .arg(document)
        .args(replaced)
        .current_dir(root)
        .env("HOME", home)
        .env("LC_ALL", "C")
        .env("PATH", format!("{}:{path}", binaries().display()))
        .env("INTERLOCK_GATEWAY__LISTEN", format!("127.0.0.1:{port}"))
        .env("INTERLOCK_BUS__ENDPOINTS", "[\"ipc\"]");
    for name in ["INTERLOCK_DATA_DIR", "INTERLOCK_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    TestProcess::spawn(command)
}
