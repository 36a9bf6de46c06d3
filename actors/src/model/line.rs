//! Requests of one model that run, and those that wait for their turn: both bounded, first come, first served. Pure.

use std::collections::VecDeque;

/// The line in front of one model.
///
/// Invariant: nobody waits while fewer than `running_max` run.
#[derive(Debug)]
pub(super) struct Line<T> {
    running_max: usize,
    waiting_max: usize,
    running: usize,
    waiting: VecDeque<T>,
}

/// What became of a request that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<T> {
    /// It runs from now on; [`Line::finished`] ends that.
    Runs(T),
    /// It waits; [`Line::finished`] will give it back.
    Waits,
    /// There is no room.
    Full(T),
}

impl<T> Line<T> {
    pub(super) fn new(running_max: usize, waiting_max: usize) -> Self {
        Self { running_max, waiting_max, running: 0, waiting: VecDeque::new() }
    }

    /// A request comes. Those that wait and are `gone` make room.
    pub(super) fn come(&mut self, request: T, gone: impl Fn(&T) -> bool) -> Place<T> {
        if self.running < self.running_max {
            self.running += 1;
            return Place::Runs(request);
        }
        if self.waiting.len() >= self.waiting_max {
            self.waiting.retain(|waiting| !gone(waiting));
        }
        if self.waiting.len() >= self.waiting_max {
            return Place::Full(request);
        }
        self.waiting.push_back(request);
        Place::Waits
    }

    /// One that ran has ended: the next one runs in its place, if any waits.
    pub(super) fn finished(&mut self) -> Option<T> {
        let next = self.waiting.pop_front();
        if next.is_none() {
            self.running = self.running.saturating_sub(1);
        }
        next
    }

    /// Takes out all that wait.
    pub(super) fn drain(&mut self) -> VecDeque<T> {
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn running_max(&self) -> usize {
        self.running_max
    }

    pub(super) fn waiting_max(&self) -> usize {
        self.waiting_max
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_is_gone_makes_room_only_when_it_is_needed() {
        let mut line = Line::new(1, 1);
        assert_eq!(line.come("first", |_| false), Place::Runs("first"));
        assert_eq!(line.come("gone", |_| false), Place::Waits);
        assert_eq!(line.come("late", |_| false), Place::Full("late"));
        assert_eq!(line.come("late", |waiting| *waiting == "gone"), Place::Waits);
        assert_eq!((line.finished(), line.finished(), line.running()), (Some("late"), None, 0));
    }

    proptest! {
        #[test]
        fn the_bounds_hold_and_who_came_first_runs_first(
            running_max in 1usize..4, waiting_max in 0usize..4, comes in prop::collection::vec(any::<bool>(), 0..60),
        ) {
            let mut line = Line::new(running_max, waiting_max);
            let (mut next, mut order) = (0, Vec::new());
            for comes in comes {
                if comes {
                    match line.come(next, |_| false) {
                        Place::Runs(one) => order.push(one),
                        Place::Waits => {}
                        Place::Full(one) => {
                            prop_assert_eq!(one, next);
                            prop_assert_eq!(line.waiting(), waiting_max);
                        }
                    }
                    next += 1;
                } else if line.running() > 0 {
                    order.extend(line.finished());
                }
                prop_assert!(line.running() <= running_max && line.waiting() <= waiting_max);
                prop_assert!(line.waiting() == 0 || line.running() == running_max);
            }
            prop_assert!(order.is_sorted());
        }
    }
}
