//! From what was said to what to say: replays the conversation through the script.
//!
//! Everything the engine seems to remember (names, facts, which answers it has given, what it
//! wanted to come back to) is found again in the messages each time. The work is linear in the
//! length of the conversation, which is bounded.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use super::{
    pattern::{Clause, Part, Template, Word},
    read::{Rule, Script},
};
use crate::{
    model::limits,
    topics::{ChatMessage, Role},
};

/// What the script says to the last user message.
pub(super) fn answer(script: &Script, messages: &[ChatMessage]) -> String {
    let mut memory = Memory::default();
    let mut choice = None;
    for message in recent(messages) {
        match message.role {
            Role::User => choice = Some(hear(script, &mut memory, &message.text)),
            Role::Assistant => {
                if let Some(choice) = choice.take() {
                    memory.settle(choice, &message.text);
                }
            }
            Role::System => {}
        }
    }
    let choice = choice.unwrap_or_else(|| otherwise(script, &memory));
    let last_used = |candidate: &(usize, String)| memory.used.get(&(choice.place, candidate.0)).copied();
    choice
        .candidates
        .iter()
        .min_by_key(|candidate| last_used(candidate))
        .map_or_else(|| PLAINEST.to_owned(), |(_, text)| text.clone())
}

/// Said if a script has only answers with facts that are not known.
const PLAINEST: &str = "Please go on.";

/// The newest messages within the limits, oldest first.
fn recent(messages: &[ChatMessage]) -> &[ChatMessage] {
    let mut bytes = 0;
    let count = messages
        .iter()
        .rev()
        .take(limits::SCRIPT_MESSAGES_MAX)
        .take_while(|message| {
            let is_first = bytes == 0;
            bytes += message.text.len() + 1;
            is_first || bytes <= limits::SCRIPT_HISTORY_BYTES_MAX
        })
        .count();
    &messages[messages.len() - count..]
}

/// Which list of answers; the key of what was used when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Rule { keyword: usize, rule: usize },
    Memory,
    Otherwise,
    Silence,
}

/// The answers that fit, with their positions in the list at `place`.
struct Choice {
    place: Place,
    candidates: Vec<(usize, String)>,
}

struct Fact {
    key: String,
    value: String,
    phrase: String,
}

/// What a replay has gathered so far.
#[derive(Default)]
struct Memory {
    facts: Vec<Fact>,
    /// When each answer was last given.
    used: HashMap<(Place, usize), usize>,
    answers: usize,
    /// What to come back to.
    later: VecDeque<String>,
    remembered: usize,
}

impl Memory {
    /// Takes note of which of the possible answers was given.
    fn settle(&mut self, choice: Choice, given: &str) {
        self.answers += 1;
        if let Some((index, _)) = choice.candidates.into_iter().find(|(_, text)| text == given) {
            match choice.place {
                Place::Memory => drop(self.later.pop_front()),
                place => drop(self.used.insert((place, index), self.answers)),
            }
        }
    }

    fn fact(&self, key: &str) -> Option<&str> {
        self.facts.iter().find(|fact| fact.key == key).map(|fact| fact.value.as_str())
    }

    fn phrases(&self) -> Option<String> {
        let (last, before) = self.facts.split_last()?;
        if before.is_empty() {
            return Some(last.phrase.clone());
        }
        let before: Vec<_> = before.iter().map(|fact| fact.phrase.as_str()).collect();
        Some(format!("{} and {}", before.join(", "), last.phrase))
    }
}

/// Takes in what the user said and finds the answers that fit.
fn hear(script: &Script, memory: &mut Memory, text: &str) -> Choice {
    let clauses = clauses(script, text);
    for clause in clauses.iter().filter(|clause| !clause.is_question) {
        learn(script, memory, &clause.words);
    }
    if clauses.is_empty() {
        return fill(script, memory, Place::Silence, &script.silence, &[], &[]);
    }
    for (clause, keyword) in by_rank(script, &clauses) {
        let words = &clauses[clause].words;
        for (index, rule) in script.keywords[keyword].rules.iter().enumerate() {
            let Some(captures) = rule.pattern.matches(words) else { continue };
            let place = Place::Rule { keyword, rule: index };
            let choice = fill(script, memory, place, &rule.answers, words, &captures);
            if !choice.candidates.is_empty() {
                remember(script, memory, rule, words, &captures);
                return choice;
            }
        }
    }
    otherwise(script, memory)
}

fn otherwise(script: &Script, memory: &Memory) -> Choice {
    match memory.later.front() {
        Some(line) => Choice { place: Place::Memory, candidates: vec![(0, line.clone())] },
        None => fill(script, memory, Place::Otherwise, &script.otherwise, &[], &[]),
    }
}

/// Clause and keyword pairs worth trying: highest rank first, then in the order said.
fn by_rank(script: &Script, clauses: &[Clause]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (index, clause) in clauses.iter().enumerate() {
        let begin = found.len();
        for word in &clause.words {
            if let Some(&keyword) = script.keyword_of.get(&word.lower)
                && !found[begin..].contains(&(index, keyword))
            {
                found.push((index, keyword));
            }
        }
    }
    found.sort_by_key(|&(_, keyword)| std::cmp::Reverse(script.keywords[keyword].rank));
    found
}

fn learn(script: &Script, memory: &mut Memory, words: &[Word]) {
    for rule in &script.facts {
        let Some(captures) = rule.pattern.matches(words) else { continue };
        let render = |template| render(script, memory, template, words, &captures);
        let Some(key) = render(&rule.key).map(|key| key.to_lowercase()) else { continue };
        let told = match &rule.value {
            None => None,
            Some((value, phrase)) => match (render(value), render(phrase)) {
                (Some(value), Some(phrase)) => Some((value, phrase)),
                _ => continue,
            },
        };
        memory.facts.retain(|fact| fact.key != key);
        if let Some((value, phrase)) = told {
            if memory.facts.len() >= limits::SCRIPT_FACTS_MAX {
                memory.facts.remove(0);
            }
            memory.facts.push(Fact { key, value, phrase });
        }
        return;
    }
}

fn remember(script: &Script, memory: &mut Memory, rule: &Rule, words: &[Word], captures: &[Range<usize>]) {
    if rule.remember.is_empty() || memory.later.len() >= limits::SCRIPT_LATER_MAX {
        return;
    }
    let template = &rule.remember[memory.remembered % rule.remember.len()];
    if let Some(line) = render(script, memory, template, words, captures) {
        memory.remembered += 1;
        memory.later.push_back(sentence(&line));
    }
}

fn fill(
    script: &Script,
    memory: &Memory,
    place: Place,
    templates: &[Template],
    words: &[Word],
    captures: &[Range<usize>],
) -> Choice {
    let filled = |(index, template)| {
        render(script, memory, template, words, captures).map(|text| (index, sentence(&text)))
    };
    Choice { place, candidates: templates.iter().enumerate().filter_map(filled).collect() }
}

/// The template with its blanks filled; `None` if one of them has nothing in it.
fn render(
    script: &Script,
    memory: &Memory,
    template: &Template,
    words: &[Word],
    captures: &[Range<usize>],
) -> Option<String> {
    let lower = |index: usize| {
        words[captures[index].clone()].iter().map(|word| word.lower.as_str()).collect::<Vec<_>>().join(" ")
    };
    let mut text = String::new();
    for part in &template.parts {
        let filled = match part {
            Part::Text(fixed) => {
                text.push_str(fixed);
                continue;
            }
            Part::Capture(index) => reflect(script, &words[captures[*index].clone()]),
            Part::AsSaid(index) => lower(*index),
            Part::Fact(key) => memory.fact(key)?.to_owned(),
            Part::FactOf(index, added) => memory.fact(&(lower(*index) + added))?.to_owned(),
            Part::Facts => memory.phrases()?,
        };
        if filled.is_empty() {
            return None;
        }
        text.push_str(&filled);
    }
    Some(text)
}

/// What was said, seen from the other side: `my` becomes `your`.
fn reflect(script: &Script, words: &[Word]) -> String {
    let mut out: Vec<&str> = Vec::with_capacity(words.len());
    let mut rest = words;
    while let [word, after @ ..] = rest {
        if let [next, after_next @ ..] = after
            && let Some(turned) = script.reflections.get(&format!("{} {}", word.lower, next.lower))
        {
            out.push(turned);
            rest = after_next;
            continue;
        }
        let at_end = script.reflections_at_end.get(&word.lower).filter(|_| after.is_empty());
        let turned = at_end.or_else(|| script.reflections.get(&word.lower));
        out.push(turned.map_or(word.said.as_str(), String::as_str));
        rest = after;
    }
    out.join(" ")
}

/// Begins with a capital letter.
fn sentence(text: &str) -> String {
    let mut characters = text.trim().chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).collect(),
        None => String::new(),
    }
}

/// What was said, in clauses of words; contractions are replaced. Never longer than the limits.
fn clauses(script: &Script, text: &str) -> Vec<Clause> {
    let mut clauses = Vec::new();
    let mut clause = Clause::default();
    let mut words_left = limits::SCRIPT_WORDS_MAX;
    let mut characters = text.chars().peekable();
    let mut word = String::new();
    let mut end = |clause: &mut Clause| {
        if !clause.words.is_empty() {
            clauses.push(std::mem::take(clause));
        }
    };
    loop {
        let character = characters.next();
        let joins_digits = |next: Option<&char>| {
            word.ends_with(|last: char| last.is_ascii_digit()) && next.is_some_and(char::is_ascii_digit)
        };
        match character {
            Some('\u{2019}') => word.push('\''),
            Some(inside) if inside.is_alphanumeric() || "'-_+#&%/@".contains(inside) => word.push(inside),
            Some(inside @ ('.' | ',')) if joins_digits(characters.peek()) => word.push(inside),
            _ => {
                finish(script, &mut word, &mut clause);
                let stop = character.is_none_or(|character| ".,!?;:()\n\"".contains(character));
                clause.is_question = character == Some('?');
                if stop || clause.words.len() >= limits::SCRIPT_CLAUSE_WORDS_MAX {
                    words_left = words_left.saturating_sub(clause.words.len());
                    end(&mut clause);
                }
                if character.is_none() || words_left == 0 {
                    return clauses;
                }
            }
        }
    }
}

/// Ends the word at hand and puts it, or what replaces it, into the clause.
fn finish(script: &Script, word: &mut String, clause: &mut Clause) {
    let said = std::mem::take(word);
    let said = said.trim_matches(|character| "'-/".contains(character));
    if said.is_empty() {
        return;
    }
    let said: String = said.chars().take(limits::SCRIPT_WORD_CHARACTERS_MAX).collect();
    let lower = said.to_lowercase();
    match script.substitutions.get(&lower) {
        Some(words) => {
            clause.words.extend(words.iter().map(|word| Word { lower: word.clone(), said: word.clone() }))
        }
        None => clause.words.push(Word { lower, said }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::{super::read, *};

    fn built_in() -> Script {
        read::parse(super::super::DEFAULT_SCRIPT, Path::new("script.toml")).unwrap()
    }

    /// Says each line in turn and keeps the answers.
    struct Talk {
        script: Script,
        messages: Vec<ChatMessage>,
    }

    impl Talk {
        fn new(script: Script) -> Self {
            Self { script, messages: Vec::new() }
        }

        fn say(&mut self, text: &str) -> String {
            self.messages.push(ChatMessage::new(Role::User, text));
            let answer = answer(&self.script, &self.messages);
            self.messages.push(ChatMessage::new(Role::Assistant, answer.clone()));
            answer
        }
    }

    fn small(rules: &str) -> Script {
        let text = format!(
            "name='t'\notherwise=['One.','Two.','Three.']\nsilence=['Hm.']\n\
             [reflections]\ni='you'\nmy='your'\n'you are'='I am'\nyou='I'\n[reflections_at_end]\nyou='me'\n{rules}"
        );
        read::parse(&text, Path::new("small.toml")).unwrap()
    }

    #[test]
    fn it_remembers_the_name_and_facts_told_earlier() {
        let mut talk = Talk::new(built_in());
        talk.say("Hello there!");
        assert!(talk.say("I'm called Ada, by the way.").contains("Ada"));
        talk.say("My favourite colour is dark green.");
        talk.say("My sister's name is Grace.");
        talk.say("It rained all day.");
        assert!(talk.say("What is my name?").contains("Ada"));
        assert!(talk.say("do you remember what my favourite colour is").contains("dark green"));
        assert!(talk.say("What's my sister's name?").contains("Grace"));
        let all = talk.say("What do you know about me?");
        assert!(["Ada", "dark green", "Grace"].iter().all(|fact| all.contains(fact)), "{all}");
        talk.say("My favourite colour is red.");
        let red = talk.say("what is my favorite colour?");
        assert!(red.contains("red") && !red.contains("green"), "{red}");
        talk.say("My name is not Ada.");
        assert!(!talk.say("What is my name?").contains("Ada"));
    }

    #[test]
    fn a_question_is_not_taken_for_a_fact() {
        let mut talk = Talk::new(built_in());
        talk.say("Is my name Bob?");
        talk.say("why my name is Bob?");
        assert!(!talk.say("What is my name?").contains("Bob"));
    }

    #[test]
    fn pronouns_are_turned_round() {
        let script = small(
            "[[keywords]]\nwords=['need']\n[[keywords.rules]]\npattern='i need +'\nanswers=['Why {1}?']",
        );
        let mut talk = Talk::new(script);
        assert_eq!(talk.say("I need my brother and you"), "Why your brother and me?");
        assert_eq!(talk.say("I need proof you are here"), "Why proof I am here?");
    }

    #[test]
    fn answers_take_turns_also_when_the_window_of_messages_slides() {
        let mut talk =
            Talk::new(small("[[keywords]]\nwords=['x']\n[[keywords.rules]]\npattern='*'\nanswers=['X']"));
        let mut answers = Vec::new();
        for _ in 0..limits::SCRIPT_MESSAGES_MAX {
            answers.push(talk.say("hum"));
        }
        for window in answers.windows(3) {
            let mut window = window.to_vec();
            window.sort();
            assert_eq!(window, ["One.", "Three.", "Two."]);
        }
    }

    #[test]
    fn the_highest_rank_wins_and_what_was_set_aside_comes_back_once() {
        let mut talk = Talk::new(small(
            "[[keywords]]\nwords=['low']\nrank=1\n[[keywords.rules]]\npattern='*'\nanswers=['Low.']\n\
             [[keywords]]\nwords=['my']\nrank=5\n[[keywords.rules]]\npattern='* my +'\nanswers=['Your {2}?']\n\
             remember=['Earlier: your {2}.']",
        ));
        assert_eq!(talk.say("low. my hat"), "Your hat?");
        assert_eq!(talk.say("low"), "Low.");
        assert_eq!(talk.say("hum"), "Earlier: your hat.");
        assert_eq!(talk.say("hum"), "One.");
        assert_eq!(talk.say("..."), "Hm.");
    }

    #[test]
    fn it_answers_the_same_from_the_same_messages() {
        let mut talk = Talk::new(built_in());
        for line in ["hi", "I feel sad", "because of my dog", "yes", "no", "what are you?", "bye"] {
            let said = talk.say(line);
            let again = answer(&built_in(), &talk.messages[..talk.messages.len() - 1]);
            assert_eq!(said, again);
        }
    }

    #[test]
    fn the_longest_conversation_of_hostile_words_is_answered_at_once() {
        let script = built_in();
        let flood = "my i am is you what ".repeat(50_000);
        let messages: Vec<_> = (0..400).map(|_| ChatMessage::new(Role::User, flood.clone())).collect();
        let begun = std::time::Instant::now();
        answer(&script, &messages);
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn any_text_gets_an_answer(texts in prop::collection::vec(".{0,80}", 1..6)) {
            let mut talk = Talk::new(built_in());
            for text in texts {
                prop_assert!(!talk.say(&text).is_empty());
            }
        }

        #[test]
        fn any_sequence_of_the_scripts_own_words_gets_an_answer(
            words in prop::collection::vec(prop::sample::select(vec![
                "i", "my", "you", "are", "is", "name", "what", "like", "not", ",", "?", ".", "i'm", "\u{2019}", "3.5",
            ]), 0..40),
        ) {
            let text = words.join(" ");
            let mut talk = Talk::new(built_in());
            prop_assert!(!talk.say(&text).is_empty());
            prop_assert!(!talk.say(&text).is_empty());
        }
    }
}
