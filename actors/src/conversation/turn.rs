//! One turn of a conversation as a pure state machine: what came in, what to do next, how it ended.
//!
//! | state | `Saved` | `NotSaved` | `Delta` | `Final` | `ModelFailed` | `Cancel` | deadline |
//! |---|---|---|---|---|---|---|---|
//! | received: the user's text is being saved | ask | failed | failed | failed | failed | cancelled | failed |
//! | asking: no part of the answer yet | - | - | streaming | answered | failed | cancelled | failed |
//! | streaming | - | - | streaming | answered | failed | cancelled | failed |
//! | answered: the whole answer is being saved | finished | failed | failed | failed | - | - | failed |
//!
//! `-` changes nothing. Every step consumes the turn, and an ended one is not given back: there is
//! nothing left that could end a second time. The caller brings the time and does what
//! [`Output`] says; a turn that is told the time always ends.

use std::time::{Duration, Instant};

use crate::topics::{CompletionDelta, CompletionFinal, code};

/// How long each state may last. When one is over, the turn ends as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Saving a message.
    pub save: Duration,
    /// From asking the model to the first part of its answer.
    pub first_part: Duration,
    /// From one part to the next.
    pub next_part: Duration,
    /// The whole turn.
    pub whole: Duration,
}

/// A turn that has not ended.
#[derive(Debug)]
pub struct Turn {
    state: State,
    timing: Timing,
    answer_bytes_max: usize,
    /// When the turn as a whole has to be over.
    end_by: Instant,
    /// When the present state has to be over.
    state_by: Instant,
    text: String,
    deltas: u32,
}

#[derive(Debug)]
enum State {
    Received,
    Asking,
    Streaming,
    Answered(CompletionFinal),
}

/// What can happen to a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// What was to be saved is saved.
    Saved,
    /// It is not.
    NotSaved {
        /// The store's words.
        text: String,
    },
    /// A piece of the answer.
    Delta(CompletionDelta),
    /// The model has finished.
    Final(CompletionFinal),
    /// The model has not, and never will.
    ModelFailed {
        /// A word for programs.
        code: String,
        /// A sentence for people.
        text: String,
    },
    /// Whoever asked does not want it any more.
    Cancel,
    /// Nothing, but time has passed.
    Tick,
}

/// What the caller has to do after a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Nothing.
    Nothing,
    /// Tell that the turn has started, and ask the model.
    Ask,
    /// Pass on a piece of the answer.
    Pass(CompletionDelta),
    /// Save the answer and report [`Input::Saved`] or [`Input::NotSaved`].
    Save {
        /// The whole answer.
        text: String,
    },
}

/// A turn goes on, or has ended.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// It goes on.
    On(Turn, Output),
    /// It has ended, in the one way it ends.
    End(Ending),
}

/// The one ending of a turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// What there was of the answer.
    pub text: String,
    /// In how many pieces it came.
    pub deltas: u32,
    /// How the turn ended.
    pub outcome: Outcome,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// With a whole answer, which is saved.
    Finished(CompletionFinal),
    /// Without.
    Failed {
        /// A word for programs.
        code: String,
        /// A sentence for people.
        text: String,
    },
    /// Whoever asked has cancelled.
    Cancelled,
}

impl Turn {
    /// A turn whose user's text has come and is being saved.
    pub fn received(timing: Timing, answer_bytes_max: usize, now: Instant) -> Self {
        Self {
            state: State::Received,
            timing,
            answer_bytes_max,
            end_by: now + timing.whole,
            state_by: now + timing.save,
            text: String::new(),
            deltas: 0,
        }
    }

    /// When the turn wants an [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Instant {
        self.state_by.min(self.end_by)
    }

    /// When the turn as a whole has to be over.
    pub fn whole_deadline(&self) -> Instant {
        self.end_by
    }

    /// What one input does.
    pub fn on(self, input: Input, now: Instant) -> Step {
        match (&self.state, input) {
            (_, Input::Tick) if now >= self.deadline() => self.late(now),
            (State::Received, Input::Saved) => {
                let by = now + self.timing.first_part;
                self.enter(State::Asking, by, Output::Ask)
            }
            (State::Answered(completion), Input::Saved) => {
                let outcome = Outcome::Finished(completion.clone());
                self.end(outcome)
            }
            (State::Received | State::Answered(_), Input::NotSaved { text }) => {
                self.fail(code::STORE, format!("the conversation cannot be saved: {text}"))
            }
            (State::Asking | State::Streaming, Input::Delta(delta)) => self.delta(delta, now),
            (State::Asking | State::Streaming, Input::Final(completion)) => {
                let (by, text) = (now + self.timing.save, self.text.clone());
                self.enter(State::Answered(completion), by, Output::Save { text })
            }
            (State::Received, Input::Delta(_) | Input::Final(_)) => {
                self.fail(code::MODEL_PROTOCOL, "the model answered before it was asked".to_owned())
            }
            (State::Answered(_), Input::Delta(_) | Input::Final(_)) => {
                self.fail(code::MODEL_PROTOCOL, "the model went on after its final part".to_owned())
            }
            (State::Answered(_), Input::ModelFailed { .. } | Input::Cancel) => self.on_as_before(),
            (_, Input::ModelFailed { code, text }) => self.fail(&code, text),
            (_, Input::Cancel) => self.end(Outcome::Cancelled),
            (State::Asking | State::Streaming, Input::Saved | Input::NotSaved { .. }) | (_, Input::Tick) => {
                self.on_as_before()
            }
        }
    }

    fn delta(mut self, delta: CompletionDelta, now: Instant) -> Step {
        if delta.index != self.deltas {
            let text = format!("the model sent part {} where part {} was due", delta.index, self.deltas);
            return self.fail(code::MODEL_PROTOCOL, text);
        }
        if self.text.len() + delta.text.len() > self.answer_bytes_max {
            let text = format!("the answer is longer than the limit of {} bytes", self.answer_bytes_max);
            return self.fail(code::TOO_LONG, text);
        }
        self.text.push_str(&delta.text);
        self.deltas += 1;
        let by = now + self.timing.next_part;
        self.enter(State::Streaming, by, Output::Pass(delta))
    }

    fn late(self, now: Instant) -> Step {
        let text = match &self.state {
            _ if now >= self.end_by => format!("the turn took longer than {:?}", self.timing.whole),
            State::Received | State::Answered(_) => {
                format!("saving the conversation took longer than {:?}", self.timing.save)
            }
            State::Asking => format!("the model said nothing for {:?}", self.timing.first_part),
            State::Streaming => format!("the model stopped talking for {:?}", self.timing.next_part),
        };
        self.fail(code::TIMED_OUT, text)
    }

    fn enter(self, state: State, state_by: Instant, output: Output) -> Step {
        Step::On(Self { state, state_by, ..self }, output)
    }

    fn on_as_before(self) -> Step {
        Step::On(self, Output::Nothing)
    }

    fn fail(self, code: &str, text: String) -> Step {
        self.end(Outcome::Failed { code: code.to_owned(), text })
    }

    fn end(self, outcome: Outcome) -> Step {
        Step::End(Ending { text: self.text, deltas: self.deltas, outcome })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMING: Timing = Timing {
        save: Duration::from_secs(10),
        first_part: Duration::from_secs(60),
        next_part: Duration::from_secs(30),
        whole: Duration::from_secs(300),
    };

    fn delta(index: u32, text: &str) -> Input {
        Input::Delta(CompletionDelta { index, text: text.to_owned() })
    }

    fn completion() -> CompletionFinal {
        CompletionFinal {
            finish_reason: "stop".to_owned(),
            back_end: "script".to_owned(),
            model: "m".to_owned(),
            ..CompletionFinal::default()
        }
    }

    /// Feeds inputs, each some seconds after the one before, and returns outputs and the ending.
    fn run(inputs: impl IntoIterator<Item = (u64, Input)>) -> (Vec<Output>, Option<Ending>) {
        let mut now = Instant::now();
        let mut turn = Turn::received(TIMING, 20, now);
        let mut outputs = Vec::new();
        for (seconds, input) in inputs {
            now += Duration::from_secs(seconds);
            match turn.on(input, now) {
                Step::On(next, output) => {
                    outputs.push(output);
                    turn = next;
                }
                Step::End(ending) => return (outputs, Some(ending)),
            }
        }
        (outputs, None)
    }

    fn failed_with(ending: Option<Ending>) -> String {
        match ending.unwrap().outcome {
            Outcome::Failed { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_turn_saves_asks_streams_saves_and_finishes() {
        let (outputs, ending) = run([
            (0, Input::Saved),
            (1, delta(0, "Hello")),
            (1, delta(1, " you")),
            (1, Input::Final(completion())),
            (1, Input::Saved),
        ]);
        let pass = |index, text: &str| Output::Pass(CompletionDelta { index, text: text.to_owned() });
        let save = Output::Save { text: "Hello you".to_owned() };
        assert_eq!(outputs, [Output::Ask, pass(0, "Hello"), pass(1, " you"), save]);
        let expected =
            Ending { text: "Hello you".to_owned(), deltas: 2, outcome: Outcome::Finished(completion()) };
        assert_eq!(ending.unwrap(), expected);
    }

    #[test]
    fn a_part_that_is_missing_doubled_or_too_long_fails_the_turn() {
        for bad in [delta(0, "x"), delta(2, "x")] {
            let (_, ending) = run([(0, Input::Saved), (0, delta(0, "x")), (0, bad)]);
            assert_eq!(failed_with(ending), code::MODEL_PROTOCOL);
        }
        let (_, ending) = run([(0, Input::Saved), (0, delta(0, "0123456789")), (0, delta(1, "0123456789a"))]);
        assert_eq!(ending.as_ref().unwrap().text, "0123456789");
        assert_eq!(failed_with(ending), code::TOO_LONG);
        assert_eq!(failed_with(run([(0, delta(0, "x"))]).1), code::MODEL_PROTOCOL);
    }

    #[test]
    fn each_state_has_its_own_deadline_and_the_turn_one_more() {
        let late =
            |before: Vec<(u64, Input)>, seconds| run(before.into_iter().chain([(seconds, Input::Tick)])).1;
        let saved = || (0, Input::Saved);
        assert!(late(vec![], 9).is_none());
        assert_eq!(failed_with(late(vec![], 10)), code::TIMED_OUT);
        assert!(late(vec![saved()], 59).is_none());
        assert_eq!(failed_with(late(vec![saved()], 60)), code::TIMED_OUT);
        assert!(late(vec![saved(), (59, delta(0, "a"))], 29).is_none());
        assert_eq!(failed_with(late(vec![saved(), (59, delta(0, "a"))], 30)), code::TIMED_OUT);
        let long: Vec<_> =
            std::iter::once(saved()).chain((0..11).map(|index| (27, delta(index, "a")))).collect();
        assert!(late(long.clone(), 2).is_none());
        assert_eq!(failed_with(late(long, 3)), code::TIMED_OUT);
    }

    #[test]
    fn a_whole_answer_is_not_lost_to_a_late_cancel_or_a_dying_model() {
        let answered = || vec![(0, Input::Saved), (0, delta(0, "a")), (0, Input::Final(completion()))];
        for late in [Input::Cancel, Input::ModelFailed { code: "x".to_owned(), text: "y".to_owned() }] {
            let inputs = answered().into_iter().chain([(0, late), (0, Input::Saved)]);
            assert_eq!(run(inputs).1.unwrap().outcome, Outcome::Finished(completion()));
        }
        let not_saved = (0, Input::NotSaved { text: "disk full".to_owned() });
        assert_eq!(failed_with(run(answered().into_iter().chain([not_saved])).1), code::STORE);
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Saved),
            Just(Input::NotSaved { text: "no".to_owned() }),
            (0u32..4).prop_map(|index| delta(index, "abc")),
            Just(Input::Final(completion())),
            Just(Input::ModelFailed { code: "c".to_owned(), text: "t".to_owned() }),
            Just(Input::Cancel),
            Just(Input::Tick),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_of_inputs_followed_by_time_has_exactly_one_ending(
            inputs in prop::collection::vec((0u64..40, any_input()), 0..30),
        ) {
            let end = std::iter::once((TIMING.whole.as_secs(), Input::Tick));
            let (outputs, ending) = run(inputs.into_iter().chain(end));
            let ending = ending.expect("a turn that is told the time ends");
            let passed: Vec<_> = outputs
                .iter()
                .filter_map(|output| match output {
                    Output::Pass(delta) => Some(delta.clone()),
                    _ => None,
                })
                .collect();
            prop_assert!(passed.iter().zip(0..).all(|(delta, index)| delta.index == index));
            prop_assert_eq!(passed.len(), ending.deltas as usize);
            prop_assert_eq!(passed.into_iter().map(|delta| delta.text).collect::<String>(), ending.text);
            let saves = outputs.iter().filter(|output| matches!(output, Output::Save { .. })).count();
            if matches!(ending.outcome, Outcome::Finished(_)) {
                prop_assert_eq!(saves, 1, "an answer is saved before the turn is finished");
            }
        }
    }
}
