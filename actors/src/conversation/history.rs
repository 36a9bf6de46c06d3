//! What of a conversation the model is shown: the newest messages within two limits. Pure.

use crate::topics::{ChatMessage, Role};

/// How much the model is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Messages, the newest; the user's last one is always among them.
    pub messages_max: usize,
    /// Bytes of text in all of them; the user's last message is shown whatever its size.
    pub bytes_max: usize,
}

/// The messages for the model: the instructions if there are any, then the newest of `said` (oldest
/// first), beginning with one of the user's, since models expect that. Answers without any text
/// are left out.
pub fn for_model(
    instructions: &str,
    said: impl DoubleEndedIterator<Item = ChatMessage>,
    limits: HistoryLimits,
) -> Vec<ChatMessage> {
    let mut bytes = 0;
    let mut messages: Vec<ChatMessage> = said
        .rev()
        .filter(|message| !message.text.is_empty())
        .take(limits.messages_max.max(1))
        .enumerate()
        .take_while(|(index, message)| {
            bytes += message.text.len();
            *index == 0 || bytes <= limits.bytes_max
        })
        .map(|(_, message)| message)
        .collect();
    while messages.len() > 1 && messages.last().is_some_and(|oldest| oldest.role != Role::User) {
        messages.pop();
    }
    if !instructions.is_empty() {
        messages.push(ChatMessage::new(Role::System, instructions));
    }
    messages.reverse();
    messages
}

/// A list of messages that brings its own history, with the instructions in front unless it has some of its own.
pub fn with_instructions(instructions: &str, said: &[ChatMessage]) -> Vec<ChatMessage> {
    let has_own = said.iter().any(|message| message.role == Role::System);
    let ours = (!has_own && !instructions.is_empty()).then(|| ChatMessage::new(Role::System, instructions));
    ours.into_iter().chain(said.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn talk(turns: usize) -> Vec<ChatMessage> {
        (0..turns)
            .flat_map(|turn| {
                let (question, answer) = (format!("question {turn}"), format!("answer {turn}"));
                [ChatMessage::new(Role::User, question), ChatMessage::new(Role::Assistant, answer)]
            })
            .chain([ChatMessage::new(Role::User, "now")])
            .collect()
    }

    fn texts(messages: &[ChatMessage]) -> Vec<&str> {
        messages.iter().map(|message| message.text.as_str()).collect()
    }

    #[test]
    fn the_newest_messages_are_shown_beginning_with_the_users() {
        let limits = HistoryLimits { messages_max: 4, bytes_max: 1000 };
        let shown = for_model("be kind", talk(3).into_iter(), limits);
        assert_eq!(texts(&shown), ["be kind", "question 2", "answer 2", "now"]);
        assert_eq!(shown[0].role, Role::System);
        let shown = for_model("", talk(1).into_iter(), limits);
        assert_eq!(texts(&shown), ["question 0", "answer 0", "now"]);
    }

    #[test]
    fn bytes_are_bounded_but_the_last_message_is_always_shown() {
        let limits = HistoryLimits { messages_max: 100, bytes_max: 22 };
        assert_eq!(texts(&for_model("", talk(3).into_iter(), limits)), ["question 2", "answer 2", "now"]);
        let limits = HistoryLimits { messages_max: 0, bytes_max: 0 };
        assert_eq!(texts(&for_model("", talk(3).into_iter(), limits)), ["now"]);
        assert!(for_model("", std::iter::empty(), limits).is_empty());
    }

    #[test]
    fn a_list_keeps_its_own_instructions_and_is_shown_whole() {
        let list = talk(30);
        assert_eq!(with_instructions("", &list), list);
        let shown = with_instructions("be kind", &list);
        assert_eq!((shown[0].text.as_str(), &shown[1..]), ("be kind", list.as_slice()));
        let own: Vec<_> = [ChatMessage::new(Role::System, "be rude")].into_iter().chain(list).collect();
        assert_eq!(with_instructions("be kind", &own), own);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_the_end_of_what_was_said(
            turns in 0usize..12, messages_max in 0usize..30, bytes_max in 0usize..400,
        ) {
            let said = talk(turns);
            let shown = for_model("", said.iter().cloned(), HistoryLimits { messages_max, bytes_max });
            prop_assert!(said.ends_with(&shown) && !shown.is_empty());
            prop_assert_eq!(shown[0].role, Role::User);
            prop_assert!(shown.len() <= messages_max.max(1));
            let bytes: usize = shown.iter().map(|message| message.text.len()).sum();
            prop_assert!(bytes <= bytes_max || shown.len() == 1);
        }
    }
}
