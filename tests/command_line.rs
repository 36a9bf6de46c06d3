//! What is generated from the command tables of both programs: completions and manual pages.

use std::process::{Command, Stdio};

use crate::harness::runtime::tool;

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
