//! What is generated from the definition of a command line: completions for shells, and manual pages.
//!
//! Both programs take their verbs `completions` and `man` from here, so that neither can say what the other would not.
//! The only file that names the generators.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::exit::Exit;

/// What `completions` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Completions {
    /// The shell to complete in
    #[arg(value_enum)]
    shell: Shell,
}

/// Shells that can be taught our verbs and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

impl Completions {
    /// The script that teaches the shell `command`.
    pub fn script(&self, mut command: clap::Command) -> String {
        use clap_complete::Shell as Generator;
        let generator = match self.shell {
            Shell::Bash => Generator::Bash,
            Shell::Elvish => Generator::Elvish,
            Shell::Fish => Generator::Fish,
            Shell::Powershell => Generator::PowerShell,
            Shell::Zsh => Generator::Zsh,
        };
        let (name, mut script) = (command.get_name().to_owned(), Vec::new());
        clap_complete::generate(generator, &mut command, name, &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

/// What `man` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Manual {
    /// The verb whose page is printed; that of the program if left out
    #[arg(value_name = "VERB", conflicts_with = "to")]
    verb: Vec<String>,
    /// Write the pages of all verbs into this directory, which is made if it is missing
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManualError {
    /// There is no such verb.
    #[error("no verb `{verb}`; `{program} --help` lists them")]
    UnknownVerb {
        /// What was asked for.
        verb: String,
        /// Of which program.
        program: String,
    },
    /// A page cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The page, or its directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl From<&ManualError> for Exit {
    fn from(error: &ManualError) -> Self {
        match error {
            ManualError::UnknownVerb { .. } => Self::Misuse,
            ManualError::Write { source, .. } => Self::of_io(source),
        }
    }
}

/// What `man` gives.
#[derive(Debug)]
pub enum Pages {
    /// The text of one page, in roff.
    Text(String),
    /// The files that were written.
    Written(Vec<PathBuf>),
}

impl Manual {
    /// One page, or all of them in files.
    ///
    /// # Errors
    /// [`ManualError`].
    pub fn pages(&self, command: clap::Command) -> Result<Pages, ManualError> {
        let pages = all_pages(command);
        if let Some(directory) = &self.to {
            return write(&pages, directory).map(Pages::Written);
        }
        let (program, ..) = &pages[0];
        let name = [std::slice::from_ref(program), &self.verb].concat().join("-");
        match pages.iter().find(|(page, _)| *page == name) {
            Some((_, text)) => Ok(Pages::Text(text.clone())),
            None => Err(ManualError::UnknownVerb { verb: self.verb.join(" "), program: program.clone() }),
        }
    }
}

/// The pages of a program and of its verbs, the program's first: the name of each and its text.
fn all_pages(command: clap::Command) -> Vec<(String, String)> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let source = format!("Interlock {}", command.get_version().unwrap_or_default());
    let mut pages = Vec::new();
    add_pages(&command, &source, &mut pages);
    pages
}

fn add_pages(command: &clap::Command, source: &str, pages: &mut Vec<(String, String)>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(command.clone()).source(source).manual("Interlock");
    // A vector takes everything.
    let _ = page.render(&mut text);
    let text = String::from_utf8_lossy(&text);
    // A page has no date, and the generator writes nothing for one, so that the next word would be taken for it.
    let dateless = |line: &str| line.replacen(" 1  \"", " 1 \"\" \"", 1);
    let line = |line: &str| if line.starts_with(".TH ") { dateless(line) } else { line.to_owned() } + "\n";
    pages.push((name, text.lines().map(line).collect()));
    command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .for_each(|verb| add_pages(verb, source, pages));
}

fn write(pages: &[(String, String)], directory: &Path) -> Result<Vec<PathBuf>, ManualError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ManualError::Write { path, source }
    };
    std::fs::create_dir_all(directory).map_err(failed(directory))?;
    let written = pages.iter().map(|(name, text)| {
        let path = directory.join(format!("{name}.1"));
        std::fs::write(&path, text).map_err(failed(&path))?;
        Ok(path)
    });
    written.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> clap::Command {
        let verb = |name: &'static str| clap::Command::new(name).about("Does something");
        let hidden = verb("secret").hide(true);
        clap::Command::new("prog")
            .version("1.2.3")
            .subcommand(verb("keys").subcommand(verb("issue")))
            .subcommand(hidden)
    }

    fn manual(verb: &[&str], to: Option<PathBuf>) -> Result<Pages, ManualError> {
        Manual { verb: verb.iter().map(|word| (*word).to_owned()).collect(), to }.pages(command())
    }

    #[test]
    fn each_verb_that_is_shown_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("man1");
        let Ok(Pages::Written(written)) = manual(&[], Some(to.clone())) else { panic!("no pages") };
        assert_eq!(written, ["prog.1", "prog-keys.1", "prog-keys-issue.1"].map(|name| to.join(name)));
        let Ok(Pages::Text(text)) = manual(&["keys", "issue"], None) else { panic!("no page") };
        assert_eq!(text, std::fs::read_to_string(&written[2]).unwrap());
        assert!(text.contains(".TH prog-keys-issue 1 \"\" \"Interlock 1.2.3\" Interlock\n"), "{text}");
        let error = manual(&["nothing"], None).unwrap_err();
        assert_eq!(
            (Exit::from(&error), error.to_string()),
            (Exit::Misuse, "no verb `nothing`; `prog --help` lists them".into())
        );
        let error = manual(&[], Some("/proc/nowhere/man".into())).unwrap_err();
        assert!(Exit::from(&error) == Exit::Io && error.to_string().contains("/proc/nowhere/man"), "{error}");
    }
}
