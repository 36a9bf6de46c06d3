//! Every verb of both programs, from their command tables: help, pages, completions, and what holds for all of them. A new
//! verb of the tool has to be put into the table here.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use interlock_bus::{Credentials, KeyStore};

use crate::harness::{
    TestBroker,
    runtime::{TestRuntime, final_text, tool},
};

const PROGRAMS: [&str; 2] = ["bus", "interlock"];

/// What a verb prints to standard output.
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = tool(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What bash offers once it has sourced the script, for the last of `words`.
fn completed(program: &str, words: &[&str]) -> Vec<String> {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), printed(program, &["completions", "bash"])).unwrap();
    let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
    let ask = format!(
        "source {}; COMP_WORDS=({}); COMP_CWORD={}; _{program} {program} {last} {before}; echo \"${{COMPREPLY[@]}}\"",
        script.path().display(),
        words.join(" "),
        words.len() - 1
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_and_flags_of_both_programs() {
    assert_eq!(completed("bus", &["bus", "topi"]), ["topics"]);
    assert_eq!(completed("bus", &["bus", "sub", "--head"]), ["--headers"]);
    assert_eq!(completed("interlock", &["interlock", "keys", "is"]), ["issue"]);
    for program in PROGRAMS {
        for shell in ["elvish", "fish", "powershell", "zsh"] {
            let script = printed(program, &["completions", shell]);
            assert!(script.contains(program) && script.contains("completions"), "{program} {shell}");
        }
    }
}

#[test]
fn each_verb_has_a_manual_page_that_is_typeset_without_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    for program in PROGRAMS {
        let to = directory.path().join(program);
        let pages = printed(program, &["man", "--to", to.to_str().unwrap()]);
        assert!(pages.lines().count() > 20, "{program}: {pages}");
        for page in pages.lines() {
            let mut groff = Command::new("groff");
            groff.args(["-man", "-Tascii", "-ww", "-z", page]).stdin(Stdio::null());
            let output = groff.output().expect("groff is installed, see README.md");
            assert!(output.status.success() && output.stderr.is_empty(), "{page}: {output:?}");
            let text = std::fs::read_to_string(page).unwrap();
            assert!(
                text.contains("\n.SH DESCRIPTION\n") && text.contains("\n.SH OPTIONS\n"),
                "{page}: {text}"
            );
        }
    }
    let page = std::fs::read_to_string(directory.path().join("interlock/interlock-keys-issue.1")).unwrap();
    assert_eq!(printed("interlock", &["man", "keys", "issue"]), page);
}

/// The verbs that have a page: the file's name without program and section.
fn verbs(program: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let pages = printed(program, &["man", "--to", directory.path().to_str().unwrap()]);
    let verb = |page: &str| {
        let name = Path::new(page).file_stem().unwrap().to_str().unwrap().to_owned();
        name.strip_prefix(program).unwrap().trim_start_matches('-').to_owned()
    };
    pages.lines().map(verb).filter(|verb| !verb.is_empty()).collect()
}

/// What a verb is tried with.
enum Try {
    /// Its arguments: it asks the running instance, ends with one of these codes, and with `--json` prints objects.
    Asks(&'static [&'static str], &'static [i32]),
    /// The same, without an instance.
    Alone(&'static [&'static str], &'static [i32]),
    /// It changes, runs or waits; where that is tested.
    Elsewhere(&'static str),
}
use Try::{Alone, Asks, Elsewhere};

/// Every verb of the tool. `DIR` is a directory of the test.
const BUS: &[(&str, Try)] = &[
    ("audit", Asks(&["audit", "--all"], &[0])),
    ("auth", Asks(&["auth"], &[0])),
    ("bench", Alone(&["bench", "request", "--private", "--duration", "50ms"], &[0])),
    ("broker", Elsewhere("broker_process.rs")),
    ("bw", Asks(&["bw", "#", "$sys/#"], &[0, 1])),
    ("completions", Elsewhere("above")),
    ("delay", Asks(&["delay", "nothing/#", "--since", "2s"], &[1])),
    ("doctor", Asks(&["doctor"], &[0])),
    ("events", Asks(&["events"], &[0])),
    ("gates", Asks(&["gates"], &[0])),
    ("hz", Asks(&["hz", "#", "$sys/#"], &[0, 1])),
    ("info", Asks(&["info", "sweep/retained"], &[0])),
    ("keygen", Alone(&["keygen"], &[0])),
    ("man", Alone(&["man", "--to", "DIR/man"], &[0])),
    ("peers", Asks(&["peers"], &[0])),
    ("ping", Asks(&["ping", "--count", "2"], &[0])),
    ("pub", Asks(&["pub", "sweep/a", "x"], &[0])),
    ("record", Asks(&["record", "sweep/#", "--duration", "50ms", "--output", "DIR/sweep-N.mcap"], &[0, 1])),
    ("replay", Elsewhere("recordings.rs")),
    ("request", Asks(&["request", "$sys/broker/info", "--timing"], &[0])),
    ("serve", Elsewhere("serving.rs")),
    ("sub", Asks(&["sub", "sweep/retained", "--retained", "--count", "1", "--wait", "20s"], &[0])),
    ("top", Elsewhere("its own chapter")),
    ("topics", Asks(&["topics"], &[0])),
    ("trace", Elsewhere("its own chapter")),
    ("why", Asks(&["why", "operator", "publish", "a/b"], &[0, 3])),
];

/// Verbs of `interlock` that only look.
const INTERLOCK: &[(&str, Try)] = &[
    ("check", Alone(&["check"], &[0])),
    ("config-diff", Alone(&["config", "diff"], &[0])),
    ("config-show", Alone(&["config", "show"], &[0])),
    ("critical-path", Asks(&["critical-path"], &[0])),
    ("db-check", Asks(&["db", "check"], &[0])),
    ("db-status", Asks(&["db", "status"], &[0])),
    ("explain", Asks(&["explain", "model"], &[0])),
    ("keys-list", Asks(&["keys", "list"], &[0])),
    ("keys-show", Asks(&["keys", "show", "operator"], &[0])),
    ("logs", Asks(&["logs"], &[0])),
    ("logs-stat", Asks(&["logs", "stat"], &[0])),
    ("man", Alone(&["man", "--to", "DIR/man"], &[0])),
    ("plan", Asks(&["plan", "model"], &[0])),
    ("ps", Asks(&["ps"], &[0])),
    ("reload", Asks(&["reload"], &[0])),
    ("status", Asks(&["status"], &[0])),
    ("wait", Elsewhere("guide.rs")),
];

/// A command as people have it on a terminal that knows colours, but with its output somewhere else.
fn command(program: &str, data: &Path, words: &[&str], scratch: &Path) -> Command {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed).to_string();
    let mut command = tool(program);
    command.env("TERM", "xterm-256color").env("COLORTERM", "truecolor").env("CLICOLOR_FORCE", "1");
    command.arg("--data-dir").arg(data).stdout(Stdio::piped()).stderr(Stdio::piped());
    for word in words {
        command.arg(word.replace("DIR", scratch.to_str().unwrap()).replace("-N", &format!("-{run}")));
    }
    command
}

/// Nothing that a terminal would act upon, and nothing beyond ASCII.
fn assert_plain(what: &str, bytes: &[u8]) {
    let odd = bytes.iter().find(|byte| !matches!(byte, b' '..=b'~' | b'\n' | b'\t'));
    assert_eq!(odd, None, "{what}: {}", String::from_utf8_lossy(bytes));
}

/// Runs it three ways: for people, with `--json`, and for somebody who has gone.
fn try_out(program: &str, data: &Path, words: &[&str], codes: &[i32], scratch: &Path) {
    let run = |words: &[&str]| {
        let output = command(program, data, words, scratch).output().unwrap();
        let code = output.status.code();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{program} {words:?}: {output:?}");
        assert_plain(&format!("{program} {words:?}"), &[&output.stdout[..], &output.stderr[..]].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    run(words);
    for line in run(&[words, &["--json"]].concat()).lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{words:?}: {error}: {line}"));
        assert!(value.is_object(), "{program} {words:?}: {line}");
    }
    let mut gone = command(program, data, words, scratch).spawn().unwrap();
    drop(gone.stdout.take());
    let output = gone.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("ipe") && !said.contains("panicked"), "{program} {words:?}: {said}");
    assert!(
        output.status.code().is_some_and(|code| code == 0 || codes.contains(&code)),
        "{program} {words:?}: {said}"
    );
}

#[test]
fn every_verb_keeps_the_promises_of_all_verbs_on_a_running_instance() {
    let runtime = TestRuntime::start();
    final_text(&runtime.turn("sweep", "Hello"));
    assert!(runtime.bus(&["pub", "sweep/retained", "x", "--retain"]).status.success());
    let scratch = tempfile::tempdir().unwrap();
    let known: Vec<&str> = BUS.iter().map(|(verb, _)| *verb).collect();
    for verb in verbs("bus") {
        assert!(known.contains(&verb.as_str()), "`bus {verb}` is new: add it to the table of this test");
    }
    for (program, table) in [("bus", BUS), ("interlock", INTERLOCK)] {
        let there = verbs(program);
        for (verb, how) in table {
            match how {
                Asks(words, codes) | Alone(words, codes) if there.iter().any(|name| name == verb) => {
                    try_out(program, &runtime.data(), words, codes, scratch.path());
                }
                Asks(..) | Alone(..) => panic!("`{program} {verb}` is gone"),
                Elsewhere(place) => assert!(!place.is_empty()),
            }
        }
    }
}

#[test]
fn every_verb_of_the_tool_says_that_nothing_runs_or_that_its_key_is_no_good() {
    let scratch = tempfile::tempdir().unwrap();
    let (ours, theirs) = (TestBroker::start(), TestBroker::start());
    let stranger = theirs.enrol("stranger", &["#"], &["#"], &["#"], &["#", "$sys/#"]);
    let mut credentials = Credentials::load(&stranger).unwrap();
    // The right broker, and a key that it does not know.
    credentials.endpoints = ours.handle.endpoints().to_vec();
    credentials.broker = KeyStore::open(&ours.keys()).unwrap().broker_keys().unwrap().current.public;
    credentials.save(&stranger).unwrap();
    let nowhere = scratch.path().join("nowhere");
    for (verb, how) in BUS {
        let Asks(words, _) = how else { continue };
        let output = command("bus", &nowhere, words, scratch.path()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{verb}: {said}");
        // What is wrong stands among the findings of one of them.
        assert!(*verb == "doctor" || said.contains(nowhere.to_str().unwrap()), "{verb}: {said}");
        let refused = [&["--creds", stranger.to_str().unwrap()], *words].concat();
        let output = command("bus", &nowhere, &refused, scratch.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{verb}: {output:?}");
    }
}

#[test]
fn every_verb_has_help_and_knows_what_it_does_not_know() {
    for program in PROGRAMS {
        let pages = verbs(program);
        let place = tempfile::tempdir().unwrap();
        let groups: Vec<&String> = pages
            .iter()
            .filter(|verb| pages.iter().any(|other| other.starts_with(&format!("{verb}-"))))
            .collect();
        for verb in &pages {
            // `keys-issue` is a verb of a group, `critical-path` is a word.
            let group = groups.iter().find(|group| verb.starts_with(&format!("{group}-")));
            let words: Vec<&str> = match group {
                Some(group) => vec![group.as_str(), &verb[group.len() + 1..]],
                None => vec![verb.as_str()],
            };
            let with = |flag: &'static str| [&words[..], &[flag]].concat();
            let help = command(program, place.path(), &with("--help"), place.path()).output().unwrap();
            assert!(help.status.success() && help.stderr.is_empty(), "{program} {words:?}: {help:?}");
            assert_plain(verb, &help.stdout);
            let text = String::from_utf8(help.stdout).unwrap();
            assert!(text.contains("Usage: "), "{program} {words:?}: {text}");
            let is_ours =
                BUS.iter().any(|(known, how)| *known == verb && !matches!(how, Elsewhere("its own chapter")));
            assert!(
                program != "bus" || !is_ours || text.contains("Examples:"),
                "{program} {words:?} has no example"
            );
            let odd = command(program, place.path(), &with("--no-such-flag"), place.path()).output().unwrap();
            let said = String::from_utf8(odd.stderr).unwrap();
            assert_eq!(odd.status.code(), Some(2), "{program} {words:?}: {said}");
            assert!(said.contains("--no-such-flag"), "{program} {words:?}: {said}");
            assert_plain(verb, said.as_bytes());
            let mut gone = command(program, place.path(), &with("--help"), place.path()).spawn().unwrap();
            drop(gone.stdout.take());
            let output = gone.wait_with_output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{program} {words:?}: {output:?}");
        }
    }
}
