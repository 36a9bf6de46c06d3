//! A script file to a checked [`Script`]. A mistake is refused with file, line and what is allowed.

use std::{
    collections::HashMap,
    io::Read as _,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

use super::pattern::{Pattern, Template};
use crate::model::limits;

/// Why a script cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("script `{}` cannot be read: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is too large to be a script.
    #[error("script `{}` is larger than the limit of {limit} bytes", file.display())]
    TooLarge {
        /// Which file.
        file: PathBuf,
        /// The limit in bytes.
        limit: usize,
    },
    /// The file is not the TOML that a script is made of, or holds something impossible.
    #[error("script `{}`, line {line}: {problem}", file.display())]
    Invalid {
        /// Which file.
        file: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What is wrong there, and what is allowed.
        problem: String,
    },
}

/// A checked script.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) substitutions: HashMap<String, Vec<String>>,
    pub(super) reflections: HashMap<String, String>,
    pub(super) reflections_at_end: HashMap<String, String>,
    pub(super) facts: Vec<FactRule>,
    pub(super) keywords: Vec<Keyword>,
    /// From a word to its place in `keywords`.
    pub(super) keyword_of: HashMap<String, usize>,
    pub(super) otherwise: Vec<Template>,
    pub(super) silence: Vec<Template>,
}

/// What to keep of a clause.
#[derive(Debug)]
pub(super) struct FactRule {
    pub(super) pattern: Pattern,
    pub(super) key: Template,
    /// Value and how it is told back; `None` forgets the key.
    pub(super) value: Option<(Template, Template)>,
}

#[derive(Debug)]
pub(super) struct Keyword {
    pub(super) rank: u32,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) pattern: Pattern,
    pub(super) answers: Vec<Template>,
    pub(super) remember: Vec<Template>,
}

type Texts = Vec<Spanned<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptFile {
    name: Spanned<String>,
    #[serde(default)]
    substitutions: HashMap<Spanned<String>, String>,
    #[serde(default)]
    reflections: HashMap<String, String>,
    #[serde(default)]
    reflections_at_end: HashMap<String, String>,
    #[serde(default)]
    families: HashMap<String, Vec<String>>,
    #[serde(default)]
    facts: Vec<FactEntry>,
    keywords: Vec<KeywordEntry>,
    otherwise: Spanned<Texts>,
    silence: Spanned<Texts>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FactEntry {
    pattern: Spanned<String>,
    key: Spanned<String>,
    value: Option<Spanned<String>>,
    phrase: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeywordEntry {
    words: Spanned<Texts>,
    #[serde(default)]
    rank: u32,
    rules: Spanned<Vec<RuleEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    pattern: Spanned<String>,
    answers: Spanned<Texts>,
    #[serde(default)]
    remember: Texts,
}

/// Reads a user's script.
pub(super) fn load(file: &Path) -> Result<Script, ScriptError> {
    let read = |source| ScriptError::Read { file: file.to_owned(), source };
    let mut text = Vec::new();
    let limit = limits::SCRIPT_BYTES_MAX;
    std::fs::File::open(file).map_err(read)?.take(limit as u64 + 1).read_to_end(&mut text).map_err(read)?;
    if text.len() > limit {
        return Err(ScriptError::TooLarge { file: file.to_owned(), limit });
    }
    let text = String::from_utf8(text).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        ScriptError::Invalid { file: file.to_owned(), line, problem: "this line is not UTF-8".to_owned() }
    })?;
    parse(&text, file)
}

/// A problem and where in the text it is.
type Problem = (Range<usize>, String);

/// Checks the text of a script; `file` is for messages only.
pub(super) fn parse(text: &str, file: &Path) -> Result<Script, ScriptError> {
    toml::from_str::<ScriptFile>(text)
        .map_err(|error| (error.span().unwrap_or(0..0), error.message().to_owned()))
        .and_then(check)
        .map_err(|(span, problem)| {
            let before = &text.as_bytes()[..span.start.min(text.len())];
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            ScriptError::Invalid { file: file.to_owned(), line, problem }
        })
}

fn check(file: ScriptFile) -> Result<Script, Problem> {
    if file.name.get_ref().trim().is_empty() || file.name.get_ref().len() > 64 {
        return Err((file.name.span(), "the script's name must have 1 to 64 bytes".to_owned()));
    }
    let substitutions = substitutions(file.substitutions)?;
    let mut keywords = Vec::with_capacity(file.keywords.len());
    let mut keyword_of = HashMap::new();
    for entry in file.keywords {
        if entry.words.get_ref().is_empty() {
            return Err((entry.words.span(), "a keyword needs at least one word".to_owned()));
        }
        for word in entry.words.get_ref() {
            check_word(word)?;
            if substitutions.contains_key(word.get_ref()) {
                let problem = "is replaced by [substitutions] before it can match; use the replacement";
                return Err((word.span(), format!("the word `{}` {problem}", word.get_ref())));
            }
            if keyword_of.insert(word.get_ref().clone(), keywords.len()).is_some() {
                return Err((word.span(), format!("the word `{}` stands in two keywords", word.get_ref())));
            }
        }
        keywords.push(keyword(entry.rank, entry.rules, &file.families)?);
    }
    Ok(Script {
        name: file.name.into_inner(),
        substitutions,
        reflections: file.reflections,
        reflections_at_end: file.reflections_at_end,
        facts: file.facts.into_iter().map(|entry| fact(entry, &file.families)).collect::<Result<_, _>>()?,
        keywords,
        keyword_of,
        otherwise: templates(file.otherwise, 0)?,
        silence: templates(file.silence, 0)?,
    })
}

fn substitutions(given: HashMap<Spanned<String>, String>) -> Result<HashMap<String, Vec<String>>, Problem> {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    given
        .into_iter()
        .map(|(word, text)| check_word(&word).map(|()| (word.into_inner(), words(text))))
        .collect()
}

fn check_word(word: &Spanned<String>) -> Result<(), Problem> {
    let legal = |character: char| {
        !character.is_uppercase() && (character.is_alphanumeric() || "'-_+#&%/@".contains(character))
    };
    if word.get_ref().is_empty() || !word.get_ref().chars().all(legal) {
        return Err((word.span(), format!("`{}` is not one word in lower case", word.get_ref())));
    }
    Ok(())
}

fn keyword(
    rank: u32,
    rules: Spanned<Vec<RuleEntry>>,
    families: &HashMap<String, Vec<String>>,
) -> Result<Keyword, Problem> {
    let span = rules.span();
    let rules = rules.into_inner();
    if rules.is_empty() || rules.len() > limits::SCRIPT_RULES_MAX {
        let problem =
            format!("a keyword needs 1 to {} rules, this has {}", limits::SCRIPT_RULES_MAX, rules.len());
        return Err((span, problem));
    }
    let rule = |entry: RuleEntry| {
        let pattern = pattern(&entry.pattern, families)?;
        let captures = pattern.captures();
        let answers = templates(entry.answers, captures)?;
        let remember =
            entry.remember.iter().map(|text| template(text, captures)).collect::<Result<_, _>>()?;
        Ok(Rule { pattern, answers, remember })
    };
    Ok(Keyword { rank, rules: rules.into_iter().map(rule).collect::<Result<_, _>>()? })
}

fn fact(entry: FactEntry, families: &HashMap<String, Vec<String>>) -> Result<FactRule, Problem> {
    let pattern = pattern(&entry.pattern, families)?;
    let captures = pattern.captures();
    let value = match (&entry.value, &entry.phrase) {
        (Some(value), Some(phrase)) => Some((template(value, captures)?, template(phrase, captures)?)),
        (None, None) => None,
        (Some(alone), None) | (None, Some(alone)) => {
            let problem = "a fact has both `value` and `phrase`, or neither (then it is forgotten)";
            return Err((alone.span(), problem.to_owned()));
        }
    };
    Ok(FactRule { pattern, key: template(&entry.key, captures)?, value })
}

fn pattern(text: &Spanned<String>, families: &HashMap<String, Vec<String>>) -> Result<Pattern, Problem> {
    Pattern::parse(text.get_ref(), families).map_err(|problem| (text.span(), problem))
}

fn template(text: &Spanned<String>, captures: usize) -> Result<Template, Problem> {
    Template::parse(text.get_ref(), captures).map_err(|problem| (text.span(), problem))
}

/// At least one of them must be usable whatever the user told before: else there may be silence.
fn templates(texts: Spanned<Texts>, captures: usize) -> Result<Vec<Template>, Problem> {
    if texts.get_ref().is_empty() || texts.get_ref().len() > limits::SCRIPT_ANSWERS_MAX {
        let problem = format!("1 to {} texts are needed here", limits::SCRIPT_ANSWERS_MAX);
        return Err((texts.span(), problem));
    }
    texts.get_ref().iter().map(|text| template(text, captures)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "t"
otherwise = ["Go on."]
silence = ["Hm."]
[substitutions]
"i'm" = "i am"
[families]
pet = ["cat", "dog"]
[[facts]]
pattern = "* my + is +"
key = "{=2}"
value = "{3}"
phrase = "your {2} is {3}"
[[keywords]]
words = ["my"]
rank = 3
[[keywords.rules]]
pattern = "* my @pet *"
answers = ["Tell me of your {2}."]
"#;

    fn error(text: &str) -> String {
        parse(text, Path::new("s.toml")).unwrap_err().to_string()
    }

    #[test]
    fn the_built_in_script_is_a_good_script() {
        let script = parse(super::super::DEFAULT_SCRIPT, Path::new("script.toml")).unwrap();
        assert!(script.keywords.len() > 20);
        parse(GOOD, Path::new("s.toml")).unwrap();
    }

    #[test]
    fn a_mistake_is_refused_with_file_line_and_what_is_allowed() {
        let table = [
            (
                "name = \"t\"",
                "name = \"t\"\ncolour = 1",
                "line 3: unknown field `colour`, expected one of `name`",
            ),
            ("rank = 3", "rank = \"high\"", "line 16: invalid type"),
            ("* my @pet *", "* my @pets *", "line 18: pattern `* my @pets *` names `@pets`"),
            ("{2}.\"", "{9}.\"", "line 19: text `Tell me of your {9}.`"),
            (
                "words = [\"my\"]",
                "words = [\"i'm\"]",
                "line 15: the word `i'm` is replaced by [substitutions]",
            ),
            ("words = [\"my\"]", "words = [\"my\", \"my\"]", "line 15: the word `my` stands in two keywords"),
            ("words = [\"my\"]", "words = [\"My\"]", "line 15: `My` is not one word in lower case"),
            ("silence = [\"Hm.\"]", "silence = []", "line 4: 1 to 100 texts"),
            ("value = \"{3}\"\n", "", "line 12: a fact has both"),
            ("[families]", "[families", "line 7: "),
        ];
        for (from, to, expected) in table {
            assert!(GOOD.contains(from), "{from}");
            let message = error(&GOOD.replacen(from, to, 1));
            assert!(message.starts_with("script `s.toml`, "), "{message}");
            assert!(message.contains(expected), "{message}\nlacks\n{expected}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_text_or_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mine.toml");
        assert!(matches!(load(&file), Err(ScriptError::Read { .. })));
        std::fs::write(&file, b"name = 'x'\n\xff").unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("line 2: this line is not UTF-8"));
        std::fs::write(&file, vec![b'#'; limits::SCRIPT_BYTES_MAX + 1]).unwrap();
        assert!(matches!(load(&file), Err(ScriptError::TooLarge { .. })));
        std::fs::write(&file, GOOD).unwrap();
        assert_eq!(load(&file).unwrap().name, "t");
    }
}
