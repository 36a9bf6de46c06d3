//! Messages that a queue has lost, and where in its order: a gap is told of in the place of what is missing.

use std::collections::VecDeque;

use crate::limits;

/// Losses of one queue: those in front of all that waits, and those behind a message that does.
///
/// Losses in one place are one number, and the places are at most [`limits::LOSS_PLACES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// In front of the message that is next.
    due: Lost,
    /// By the number of messages that have to leave first, counted since the queue began; ascending.
    behind: VecDeque<(u64, Lost)>,
    /// Messages that have left.
    left: u64,
}

/// Losses in one place.
#[derive(Debug, Default)]
struct Lost {
    own: u64,
    /// Of other subscriptions that were to share messages with the queue's own.
    beside: Vec<(u32, u64)>,
}

impl Lost {
    fn add(&mut self, subscription: u32, count: u64) {
        match self.beside.iter_mut().find(|(known, _)| *known == subscription) {
            Some((_, known)) => *known += count,
            None => self.beside.push((subscription, count)),
        }
    }

    /// Counts a message of the queue's own subscription, the first, and of the others. What is of none, a probe, is
    /// no message.
    fn message(&mut self, subscriptions: &[u32]) {
        self.own += u64::from(!subscriptions.is_empty());
        self.message_beside(subscriptions);
    }

    fn message_beside(&mut self, subscriptions: &[u32]) {
        subscriptions.iter().skip(1).for_each(|subscription| self.add(*subscription, 1));
    }

    fn merge(&mut self, other: Self) {
        self.own += other.own;
        other.beside.into_iter().for_each(|(subscription, count)| self.add(subscription, count));
    }
}

impl Losses {
    /// The message that was next is lost.
    pub(super) fn in_front(&mut self, subscriptions: &[u32]) {
        self.due.message(subscriptions);
    }

    /// A message is lost behind the `waiting` ones that are in the queue.
    pub(super) fn behind(&mut self, waiting: usize, subscriptions: &[u32]) {
        self.at(waiting).message(subscriptions);
    }

    /// A message behind `waiting` others was replaced: the queue's own subscription wanted that, those that share it
    /// did not.
    pub(super) fn beside(&mut self, waiting: usize, subscriptions: &[u32]) {
        if subscriptions.len() > 1 {
            self.at(waiting).message_beside(subscriptions);
        }
    }

    /// The queue's own subscription has lost messages elsewhere, while `waiting` ones are in the queue.
    pub(super) fn elsewhere(&mut self, waiting: usize, count: u64) {
        self.at(waiting).own += count;
    }

    /// The losses behind `waiting` messages; where they cannot be told apart any more, those of the place before.
    fn at(&mut self, waiting: usize) -> &mut Lost {
        let at = self.left + waiting as u64;
        let mut place = self.behind.partition_point(|(known, _)| *known < at);
        let is_known = waiting == 0 || self.behind.get(place).is_some_and(|(known, _)| *known == at);
        let is_new = !is_known && self.behind.len() < limits::LOSS_PLACES_MAX;
        if is_new {
            self.behind.insert(place, (at, Lost::default()));
        } else if !is_known {
            place = place.wrapping_sub(1);
        }
        match self.behind.get_mut(place).filter(|_| waiting > 0) {
            Some((_, lost)) => lost,
            None => &mut self.due,
        }
    }

    /// So many messages have left the front.
    pub(super) fn pass(&mut self, messages: u64) {
        self.left += messages;
        while self.behind.front().is_some_and(|(at, _)| *at <= self.left)
            && let Some((_, lost)) = self.behind.pop_front()
        {
            self.due.merge(lost);
        }
    }

    /// Messages in these places, ascending, were taken out. What was lost behind one of them was lost behind the one
    /// before it.
    pub(super) fn taken_out(&mut self, places: &[usize]) {
        let (left, mut places, mut gone) = (self.left, places.iter().peekable(), 0);
        for _ in 0..self.behind.len() {
            let Some((at, lost)) = self.behind.pop_front() else { break };
            while places.next_if(|place| left + (**place as u64) < at).is_some() {
                gone += 1;
            }
            let at = at - gone;
            match self.behind.back_mut() {
                _ if at <= left => self.due.merge(lost),
                Some((last, known)) if *last == at => known.merge(lost),
                _ => self.behind.push_back((at, lost)),
            }
        }
    }

    /// What was lost behind `from` messages was lost behind `to` of them: those between have been taken out.
    pub(super) fn close_up(&mut self, from: usize, to: usize) {
        let from = self.left + from as u64;
        if let Ok(place) = self.behind.binary_search_by_key(&from, |(at, _)| *at)
            && let Some((_, lost)) = self.behind.remove(place)
        {
            self.at(to).merge(lost);
        }
    }

    /// How many messages may leave before a loss must be told of.
    pub(super) fn next_after(&self) -> u64 {
        self.behind.front().map_or(u64::MAX, |(at, _)| at - self.left)
    }

    /// Whether nothing is in front of a loss any more.
    pub(super) fn is_due(&self) -> bool {
        self.due.own > 0 || !self.due.beside.is_empty()
    }

    /// What is due of one subscription, the queue's own under `id`.
    pub(super) fn take(&mut self, id: u32) -> Option<(u32, u64)> {
        let own = |own: u64| (own > 0).then_some((id, own));
        self.due.beside.pop().or_else(|| own(std::mem::take(&mut self.due.own)))
    }

    /// All that others have lost, wherever: the queue ends.
    pub(super) fn take_beside(&mut self) -> Vec<(u32, u64)> {
        let behind = std::mem::take(&mut self.behind);
        behind.into_iter().for_each(|(_, lost)| self.due.merge(lost));
        std::mem::take(&mut self.due.beside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(losses: &mut Losses) -> (Vec<(u32, u64)>, u64) {
        (std::iter::from_fn(|| losses.take(1)).collect(), losses.next_after())
    }

    #[test]
    fn a_loss_is_due_when_what_was_in_front_of_it_has_left() {
        let mut losses = Losses::default();
        losses.behind(3, &[1]);
        losses.behind(3, &[1, 2]);
        losses.behind(4, &[1]);
        assert_eq!(due(&mut losses), (vec![], 3));
        losses.pass(2);
        assert_eq!(due(&mut losses), (vec![], 1));
        losses.pass(1);
        assert!(losses.is_due());
        assert_eq!(due(&mut losses), (vec![(2, 1), (1, 2)], 1));
        losses.pass(1);
        assert_eq!(due(&mut losses), (vec![(1, 1)], u64::MAX));
        assert!(!losses.is_due());
    }

    #[test]
    fn what_is_taken_out_of_the_middle_moves_the_losses_behind_it() {
        let mut losses = Losses::default();
        losses.pass(10);
        losses.behind(1, &[1]);
        losses.behind(3, &[1]);
        losses.beside(2, &[1, 2]);
        losses.taken_out(&[1, 3]);
        assert_eq!(due(&mut losses), (vec![], 1));
        losses.taken_out(&[0]);
        assert_eq!(due(&mut losses), (vec![(2, 1), (1, 1)], 1));
        losses.taken_out(&[0]);
        assert_eq!(due(&mut losses), (vec![(1, 1)], u64::MAX));
    }

    #[test]
    fn losses_that_come_to_stand_in_one_place_are_one_and_the_places_are_bounded() {
        let mut losses = Losses::default();
        for _ in 0..1000 {
            losses.behind(4, &[1, 2]);
            losses.taken_out(&[3]);
        }
        assert_eq!(losses.behind.len(), 1, "a full queue whose last message is replaced again and again");
        for waiting in 0..3 * limits::LOSS_PLACES_MAX {
            losses.behind(waiting + 10, &[1]);
        }
        assert_eq!(losses.behind.len(), limits::LOSS_PLACES_MAX);
        losses.pass(4 * limits::LOSS_PLACES_MAX as u64);
        let all = 1000 + 3 * limits::LOSS_PLACES_MAX as u64;
        assert_eq!(due(&mut losses), (vec![(2, 1000), (1, all)], u64::MAX), "none is forgotten");
    }
}
