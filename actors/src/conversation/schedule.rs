//! Which turn runs now and which waits: turns of one conversation run one after another, those of
//! different ones side by side, and everything is bounded. Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::topics::ConversationId;

/// The bounds of a [`Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleLimits {
    /// Turns that run at once.
    pub running_max: usize,
    /// Turns that wait, of one conversation.
    pub waiting_per_conversation_max: usize,
    /// Turns that wait in all.
    pub waiting_max: usize,
}

/// Turns that run and turns that wait.
///
/// Invariants:
/// - at most one running turn per conversation;
/// - a conversation stands in `ready` exactly once if it has waiting turns and none that runs;
/// - `waiting` has no empty queue.
#[derive(Debug)]
pub struct Schedule<T> {
    limits: ScheduleLimits,
    running: HashSet<ConversationId>,
    waiting: HashMap<ConversationId, VecDeque<T>>,
    waiting_count: usize,
    ready: VecDeque<ConversationId>,
}

/// What became of a turn that was offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<T> {
    /// Start it now.
    Start(T),
    /// It waits; [`Schedule::finished`] will give it back.
    Waits,
    /// There is no room.
    Busy {
        /// The turn, given back.
        turn: T,
        /// Which limit, for people.
        reason: String,
    },
}

impl<T> Schedule<T> {
    /// An empty one.
    pub fn new(limits: ScheduleLimits) -> Self {
        Self {
            limits,
            running: HashSet::new(),
            waiting: HashMap::new(),
            waiting_count: 0,
            ready: VecDeque::new(),
        }
    }

    /// Offers a turn.
    pub fn admit(&mut self, conversation: &ConversationId, turn: T) -> Admission<T> {
        let waiting_here = self.waiting.get(conversation).map_or(0, VecDeque::len);
        let is_running = self.running.contains(conversation);
        if !is_running && waiting_here == 0 && self.running.len() < self.limits.running_max {
            self.running.insert(conversation.clone());
            return Admission::Start(turn);
        }
        if waiting_here >= self.limits.waiting_per_conversation_max {
            let reason = format!("conversation `{conversation}` has {waiting_here} turns waiting already");
            return Admission::Busy { turn, reason };
        }
        if self.waiting_count >= self.limits.waiting_max {
            return Admission::Busy { turn, reason: format!("{} turns wait already", self.waiting_count) };
        }
        if !is_running && waiting_here == 0 {
            self.ready.push_back(conversation.clone());
        }
        self.waiting.entry(conversation.clone()).or_default().push_back(turn);
        self.waiting_count += 1;
        Admission::Waits
    }

    /// Takes note that the running turn of a conversation has ended, and gives the turns to start now.
    pub fn finished(&mut self, conversation: &ConversationId) -> Vec<T> {
        if self.running.remove(conversation) && self.waiting.contains_key(conversation) {
            self.ready.push_back(conversation.clone());
        }
        let mut start = Vec::new();
        while self.running.len() < self.limits.running_max
            && let Some(conversation) = self.ready.pop_front()
        {
            if let Some(mut queue) = self.waiting.remove(&conversation) {
                start.extend(queue.pop_front());
                self.waiting_count -= 1;
                if !queue.is_empty() {
                    self.waiting.insert(conversation.clone(), queue);
                }
                self.running.insert(conversation);
            }
        }
        start
    }

    /// Takes out the turns of one conversation that wait; none of them will start any more.
    pub fn withdraw(&mut self, conversation: &ConversationId) -> Vec<T> {
        let Some(queue) = self.waiting.remove(conversation) else { return Vec::new() };
        self.waiting_count -= queue.len();
        self.ready.retain(|ready| ready != conversation);
        queue.into()
    }

    /// Takes out all turns that wait; none of them will start any more.
    pub fn drain(&mut self) -> Vec<T> {
        self.ready.clear();
        self.waiting_count = 0;
        std::mem::take(&mut self.waiting).into_values().flatten().collect()
    }

    /// Turns that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Turns that wait.
    pub fn waiting(&self) -> usize {
        self.waiting_count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: ScheduleLimits =
        ScheduleLimits { running_max: 2, waiting_per_conversation_max: 2, waiting_max: 3 };

    fn id(text: &str) -> ConversationId {
        text.parse().unwrap()
    }

    fn is_busy<T>(admission: &Admission<T>) -> bool {
        matches!(admission, Admission::Busy { .. })
    }

    #[test]
    fn turns_of_one_conversation_wait_for_each_other_and_others_do_not() {
        let mut schedule = Schedule::new(LIMITS);
        assert_eq!(schedule.admit(&id("a"), 1), Admission::Start(1));
        assert_eq!(schedule.admit(&id("a"), 2), Admission::Waits);
        assert_eq!(schedule.admit(&id("b"), 3), Admission::Start(3));
        assert_eq!(schedule.admit(&id("c"), 4), Admission::Waits);
        assert_eq!(schedule.finished(&id("b")), [4]);
        assert_eq!(schedule.finished(&id("a")), [2]);
        assert_eq!(schedule.finished(&id("a")), [0; 0]);
        assert_eq!((schedule.running(), schedule.waiting()), (1, 0));
    }

    #[test]
    fn a_full_queue_gives_the_turn_back_with_the_reason() {
        let mut schedule = Schedule::new(LIMITS);
        for turn in 0..3 {
            assert!(!is_busy(&schedule.admit(&id("a"), turn)));
        }
        let Admission::Busy { turn, reason } = schedule.admit(&id("a"), 9) else { panic!() };
        assert_eq!((turn, reason.as_str()), (9, "conversation `a` has 2 turns waiting already"));
        assert_eq!(schedule.admit(&id("b"), 4), Admission::Start(4));
        assert_eq!(schedule.admit(&id("b"), 5), Admission::Waits);
        assert!(is_busy(&schedule.admit(&id("c"), 6)));
    }

    #[test]
    fn drained_turns_do_not_start() {
        let mut schedule = Schedule::new(LIMITS);
        for turn in 0..3 {
            schedule.admit(&id("a"), turn);
        }
        assert_eq!(schedule.drain(), [1, 2]);
        assert_eq!(schedule.finished(&id("a")), [0; 0]);
        assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
    }

    #[test]
    fn withdrawn_turns_do_not_start_and_those_of_others_do() {
        let mut schedule = Schedule::new(LIMITS);
        schedule.admit(&id("a"), 1);
        schedule.admit(&id("a"), 2);
        schedule.admit(&id("b"), 3);
        schedule.admit(&id("c"), 4);
        assert_eq!(schedule.withdraw(&id("c")), [4]);
        assert_eq!(schedule.withdraw(&id("c")), [0; 0]);
        assert_eq!((schedule.running(), schedule.waiting()), (2, 1));
        assert_eq!(schedule.finished(&id("b")), [0; 0]);
        assert_eq!(schedule.withdraw(&id("a")), [2]);
        assert_eq!(schedule.finished(&id("a")), [0; 0]);
        assert_eq!((schedule.running(), schedule.waiting()), (0, 0));
    }

    proptest! {
        #[test]
        fn every_admitted_turn_starts_once_in_order_and_never_beside_its_sibling(
            steps in prop::collection::vec((any::<bool>(), 0usize..4), 0..60),
        ) {
            let names = ["a", "b", "c", "d"].map(id);
            let mut schedule = Schedule::new(LIMITS);
            let mut running: HashMap<usize, usize> = HashMap::new();
            let mut queued: HashMap<usize, VecDeque<usize>> = HashMap::new();
            let start = |running: &mut HashMap<usize, usize>, (who, turn): (usize, usize)| {
                assert!(running.insert(who, turn).is_none(), "two turns of one conversation at once");
            };
            let drain = (0..4).cycle().take(400).map(|who| (false, who));
            for (turn, (admit, who)) in steps.into_iter().chain(drain).enumerate() {
                if admit {
                    match schedule.admit(&names[who], (who, turn)) {
                        Admission::Start(turn) => start(&mut running, turn),
                        Admission::Waits => queued.entry(who).or_default().push_back(turn),
                        Admission::Busy { turn: (_, back), .. } => prop_assert_eq!(back, turn),
                    }
                } else if running.remove(&who).is_some() {
                    for next in schedule.finished(&names[who]) {
                        prop_assert_eq!(queued.get_mut(&next.0).unwrap().pop_front(), Some(next.1));
                        start(&mut running, next);
                    }
                }
                prop_assert!(running.len() <= LIMITS.running_max);
                prop_assert_eq!(running.len(), schedule.running());
            }
            prop_assert!(running.is_empty() && queued.values().all(VecDeque::is_empty));
            prop_assert_eq!(schedule.waiting(), 0);
        }
    }
}
