//! What may be sent now. Pure: the caller brings deliveries from the storage, the time, and what became of them.
//!
//! - Each consumer has a **window**: its open deliveries with the lowest numbers, as far as they were read. Nothing about
//!   one consumer depends on another.
//! - In a window each ordering key is a **lane**. Of a lane one **run** is in hand at a time, from its head; what is behind
//!   waits for all of it. Lanes share what may be in hand, so the oldest of many lanes go before many of one lane.
//! - What was read is believed only for deliveries that nobody had in hand meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    limits,
    storage::{DeliveryId, OpenDelivery},
};
use crate::peer::PeerName;

/// No more is read while so many times as many lanes may be sent as messages may be in hand.
const READ_AHEAD: usize = 4;

/// How much may be in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneBounds {
    pub(crate) window: usize,
    pub(crate) run: usize,
    pub(crate) messages: usize,
    pub(crate) bytes: u64,
    /// Over all consumers, who share it evenly.
    pub(crate) messages_all: usize,
    /// A due time further away than this was written under another clock.
    pub(crate) wait_max_ms: u64,
}

/// Deliveries of one lane that are to be leased together and sent one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) consumer: PeerName,
    pub(crate) numbers: Vec<u64>,
    /// What the consumer had said about itself when this was taken: [`Lanes::absent`] believes nothing older.
    pub(crate) said: u64,
}

/// A read that is to be made for a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) consumer: PeerName,
    pub(crate) after: u64,
    pub(crate) limit: usize,
}

/// How one consumer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) known: u64,
    pub(crate) in_hand: u64,
    /// There is more in the storage than is known.
    pub(crate) is_partial: bool,
    pub(crate) absent_since_ms: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Lanes {
    bounds: LaneBounds,
    consumers: BTreeMap<PeerName, Consumer>,
    last_read: Option<PeerName>,
}

#[derive(Debug, Default)]
struct Consumer {
    open: BTreeMap<u64, Open>,
    lanes: HashMap<Arc<str>, Lane>,
    /// Lanes whose head may be sent, by its number.
    ready: BTreeMap<u64, Arc<str>>,
    /// Lanes whose head waits for its time.
    timed: BTreeMap<(u64, u64), Arc<str>>,
    in_hand: usize,
    in_hand_bytes: u64,
    /// In hand, or ended and not yet settled.
    held: BTreeSet<u64>,
    /// Waiting because the consumer was lost in the middle of an attempt.
    lost: BTreeSet<u64>,
    /// Ended, and not yet settled.
    ended: usize,
    presence: Presence,
    said: u64,
    unread: Unread,
    /// Everything open up to here was read.
    read_through: u64,
    reading: Option<Reading>,
}

#[derive(Debug)]
struct Open {
    key: Arc<str>,
    bytes: u64,
    attempts: u32,
    due_ms: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    InHand,
    /// No attempt will follow; to be settled.
    Ended,
}

#[derive(Debug, Default)]
struct Lane {
    /// Waiting and in hand.
    numbers: BTreeSet<u64>,
    in_hand: usize,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    Ready(u64),
    Timed(u64, u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Present,
    Absent {
        since_ms: u64,
        /// Whether the next delivery is to try whether it is still so.
        trial: bool,
    },
}

/// What the storage may hold that is not known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Unread {
    Nothing,
    /// Above what was read.
    #[default]
    Above,
    /// Anything.
    All,
}

/// A read under way.
#[derive(Debug)]
struct Reading {
    all: bool,
    limit: usize,
    /// In hand at some moment since it began: what was read of them may be old.
    touched: BTreeSet<u64>,
    news: bool,
}

impl Lanes {
    pub(crate) fn new(bounds: LaneBounds) -> Self {
        Self { bounds, consumers: BTreeMap::new(), last_read: None }
    }

    // ---- what the storage holds -----------------------------------------------------------

    /// Something was accepted for this consumer.
    pub(crate) fn news(&mut self, name: &PeerName) {
        let consumer = self.consumers.entry(name.clone()).or_default();
        if let Some(reading) = &mut consumer.reading {
            reading.news = true;
        }
        if consumer.unread == Unread::Nothing {
            consumer.unread = Unread::Above;
        }
    }

    /// There is something for this consumer.
    pub(crate) fn meet(&mut self, name: &PeerName) {
        if !self.consumers.contains_key(name) {
            self.consumers.insert(name.clone(), Consumer::default());
        }
    }

    /// Everything is to be read anew, and whoever is absent to be tried. Whom nothing waits for is forgotten.
    pub(crate) fn sweep(&mut self) {
        self.consumers.retain(|_, consumer| !consumer.is_idle());
        for consumer in self.consumers.values_mut() {
            consumer.unread = Unread::All;
            if let Some(reading) = &mut consumer.reading {
                reading.news = true;
            }
        }
        self.try_absent();
    }

    /// Whoever is absent is to be tried.
    pub(crate) fn try_absent(&mut self) {
        for consumer in self.consumers.values_mut() {
            if let Presence::Absent { trial, .. } = &mut consumer.presence {
                *trial = true;
            }
        }
    }

    /// A read that is wanted; it counts as begun. Consumers take turns: one that always has news keeps nobody waiting.
    pub(crate) fn begin_read(&mut self) -> Option<Read> {
        let bounds = self.bounds;
        let last = self.last_read.take();
        let is_later = |name: &&PeerName| last.as_ref().is_none_or(|last| *name > last);
        let wants = |name: &&PeerName| self.consumers[*name].wanted_read(&bounds).is_some();
        let later = self.consumers.keys().filter(is_later).find(wants);
        let name = later.or_else(|| self.consumers.keys().find(wants)).cloned()?;
        let consumer = self.consumers.get_mut(&name)?;
        let (after, limit) = consumer.wanted_read(&bounds)?;
        self.last_read = Some(name.clone());
        let touched = consumer.held.clone();
        consumer.reading = Some(Reading { all: consumer.unread == Unread::All, limit, touched, news: false });
        consumer.unread = Unread::Nothing;
        Some(Read { consumer: name, after, limit })
    }

    /// The read that was begun has failed.
    pub(crate) fn unread(&mut self, name: &PeerName) {
        let Some(consumer) = self.consumers.get_mut(name) else { return };
        if let Some(reading) = consumer.reading.take() {
            let again = if reading.all { Unread::All } else { Unread::Above };
            consumer.unread = if consumer.unread == Unread::All { Unread::All } else { again };
        }
    }

    /// What was read.
    pub(crate) fn loaded(&mut self, name: &PeerName, found: Vec<OpenDelivery>, now_ms: u64) {
        let latest_ms = now_ms.saturating_add(self.bounds.wait_max_ms);
        let Some(consumer) = self.consumers.get_mut(name) else { return };
        let Some(Reading { all, limit, touched, news }) = consumer.reading.take() else { return };
        let is_complete = found.len() < limit;
        let last = found.last().map_or(0, |last| last.id.number);
        if all {
            let listed: BTreeSet<u64> = found.iter().map(|found| found.id.number).collect();
            let is_gone = |number: &u64, open: &Open| {
                open.state == State::Waiting && !touched.contains(number) && !listed.contains(number)
            };
            let gone: Vec<u64> = consumer
                .open
                .iter()
                .filter(|(number, open)| is_gone(number, open))
                .map(|(number, _)| *number)
                .collect();
            gone.into_iter().for_each(|number| consumer.forget(number));
        }
        for found in found {
            let number = found.id.number;
            if !touched.contains(&number) {
                consumer.learn(found, latest_ms);
            }
        }
        consumer.read_through = match all && !is_complete {
            true => last,
            false => consumer.read_through.max(last),
        };
        if consumer.unread == Unread::Nothing && (!is_complete || news) {
            consumer.unread = Unread::Above;
        }
    }

    // ---- what may be sent -----------------------------------------------------------------

    /// What may be leased now. It is in hand from here on.
    pub(crate) fn take(&mut self, now_ms: u64) -> Vec<Run> {
        let share = (self.bounds.messages_all / self.consumers.len().max(1)).clamp(1, self.bounds.messages);
        let mut runs = Vec::new();
        for (name, consumer) in &mut self.consumers {
            let allowed = match &mut consumer.presence {
                Presence::Present => share,
                Presence::Absent { trial: false, .. } => continue,
                Presence::Absent { .. } => 1,
            };
            if consumer.ended > 4 * self.bounds.messages {
                continue;
            }
            let before = runs.len();
            consumer.take(now_ms, allowed, &self.bounds, |numbers, said| {
                runs.push(Run { consumer: name.clone(), numbers, said });
            });
            if runs.len() > before
                && let Presence::Absent { trial, .. } = &mut consumer.presence
            {
                *trial = false;
            }
        }
        runs
    }

    /// What has waited for a consumer that is absent since `limit_ms` or longer, oldest first. It is in hand from here on.
    pub(crate) fn take_overdue(&mut self, limit_ms: u64) -> Option<Run> {
        let is_overdue =
            |presence| matches!(presence, Presence::Absent { since_ms, .. } if since_ms <= limit_ms);
        let (name, consumer) = self.consumers.iter_mut().find(|(_, consumer)| {
            is_overdue(consumer.presence) && consumer.in_hand == 0 && !consumer.lanes.is_empty()
        })?;
        let mut numbers = Vec::new();
        let mut bytes = 0;
        for (number, open) in &consumer.open {
            if open.state == State::Waiting {
                bytes += open.bytes;
                if numbers.len() == self.bounds.messages || (bytes > self.bounds.bytes && !numbers.is_empty())
                {
                    break;
                }
                numbers.push(*number);
            }
        }
        numbers.iter().for_each(|number| consumer.hold(*number));
        Some(Run { consumer: name.clone(), numbers, said: consumer.said })
            .filter(|run| !run.numbers.is_empty())
    }

    /// When something that waits for its time will be due, in milliseconds since the Unix epoch.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let first = |consumer: &Consumer| consumer.timed.keys().next().map(|(due_ms, _)| *due_ms);
        self.consumers
            .values()
            .filter(|consumer| consumer.presence == Presence::Present)
            .filter_map(first)
            .min()
    }

    // ---- what became of it ----------------------------------------------------------------

    /// It is not open any more, or its lease was not given because somebody dropped it.
    pub(crate) fn gone(&mut self, id: &DeliveryId) {
        self.with(id, |consumer| consumer.forget(id.number));
    }

    /// No attempt will follow. Those behind it may be taken; itself is known until it is settled.
    pub(crate) fn ended(&mut self, id: &DeliveryId) {
        self.with(id, |consumer| consumer.end(id.number));
    }

    /// It waits for its next attempt. With what its consumer had said when it was taken, if that was lost in the middle: it
    /// is due at once when the consumer says that it serves, also if it has said so meanwhile.
    pub(crate) fn waits(&mut self, id: &DeliveryId, attempts: u32, due_ms: u64, lost: Option<u64>) {
        self.with(id, |consumer| {
            let Some(open) = consumer.open.get_mut(&id.number) else { return };
            let is_back = lost.is_some_and(|said| said != consumer.said);
            (open.attempts, open.due_ms) = (attempts, if is_back { 0 } else { due_ms });
            consumer.release(id.number);
            if lost.is_some() && !is_back {
                consumer.lost.insert(id.number);
            }
        });
    }

    /// It was not leased, or the lease was taken back: it waits as before.
    pub(crate) fn back(&mut self, id: &DeliveryId) {
        self.with(id, |consumer| consumer.release(id.number));
    }

    /// Nobody served when a delivery of a run was tried. True if that makes it absent.
    pub(crate) fn absent(&mut self, name: &PeerName, said: u64, now_ms: u64) -> bool {
        let Some(consumer) = self.consumers.get_mut(name).filter(|consumer| consumer.said == said) else {
            return false;
        };
        match &mut consumer.presence {
            Presence::Absent { trial, .. } => {
                *trial = false;
                false
            }
            presence => {
                *presence = Presence::Absent { since_ms: now_ms, trial: false };
                true
            }
        }
    }

    /// It took a delivery, whatever became of it. True if it was absent.
    pub(crate) fn present(&mut self, name: &PeerName) -> bool {
        let consumer = self.consumers.get_mut(name);
        consumer.is_some_and(|consumer| std::mem::take(&mut consumer.presence) != Presence::Present)
    }

    /// It says that it serves: what waits because it was lost is due at once. Gives whether it was absent.
    pub(crate) fn serves(&mut self, name: &PeerName) -> bool {
        let consumer = self.consumers.entry(name.clone()).or_default();
        consumer.said += 1;
        for number in std::mem::take(&mut consumer.lost) {
            if let Some(open) = consumer.open.get_mut(&number) {
                open.due_ms = 0;
                let key = Arc::clone(&open.key);
                consumer.place(&key);
            }
        }
        std::mem::take(&mut consumer.presence) != Presence::Present
    }

    // ---- how it stands --------------------------------------------------------------------

    pub(crate) fn standings(&self) -> impl Iterator<Item = (&PeerName, Standing)> {
        self.consumers.iter().map(|(name, consumer)| {
            let absent_since_ms = match consumer.presence {
                Presence::Present => None,
                Presence::Absent { since_ms, .. } => Some(since_ms),
            };
            let standing = Standing {
                known: (consumer.open.len() - consumer.ended) as u64,
                in_hand: consumer.in_hand as u64,
                is_partial: consumer.unread != Unread::Nothing || consumer.reading.is_some(),
                absent_since_ms,
            };
            (name, standing)
        })
    }

    fn with(&mut self, id: &DeliveryId, change: impl FnOnce(&mut Consumer)) {
        if let Some(consumer) = self.consumers.get_mut(&id.consumer) {
            change(consumer);
        }
    }
}

impl Consumer {
    /// Nothing is known of it but that there is nothing.
    fn is_idle(&self) -> bool {
        let is_read = self.unread == Unread::Nothing && self.reading.is_none();
        is_read && self.open.is_empty() && self.presence == Presence::Present
    }

    /// After which number it is to be read, and how many at most.
    fn wanted_read(&self, bounds: &LaneBounds) -> Option<(u64, usize)> {
        let window = bounds.window;
        if self.reading.is_some() {
            return None;
        }
        match self.unread {
            Unread::Nothing => None,
            Unread::All => Some((0, window)),
            Unread::Above => {
                let room = window.saturating_sub(self.open.len());
                // No sooner than it is needed: read with many others a message costs less. What waits for its time or its
                // lane does not keep others from being read.
                let has_plenty = self.ready.len() >= READ_AHEAD * bounds.messages;
                let is_time = room > 0 && room >= window / 4 && !has_plenty;
                is_time.then_some((self.read_through, room.min(limits::READ)))
            }
        }
    }

    fn learn(&mut self, found: OpenDelivery, latest_ms: u64) {
        let OpenDelivery { id, key, bytes, attempts, due_ms } = found;
        let mut due_ms = due_ms.min(latest_ms);
        match self.open.get_mut(&id.number) {
            Some(known) if known.state != State::Waiting => {}
            Some(known) => {
                if known.attempts == attempts {
                    due_ms = due_ms.min(known.due_ms);
                }
                (known.attempts, known.due_ms) = (attempts, due_ms);
                let key = Arc::clone(&known.key);
                self.place(&key);
            }
            None => {
                let key = match self.lanes.get_key_value(key.as_str()) {
                    Some((key, _)) => Arc::clone(key),
                    None => Arc::from(key),
                };
                self.lanes.entry(Arc::clone(&key)).or_default().numbers.insert(id.number);
                let lane = Arc::clone(&key);
                let open = Open { key, bytes, attempts, due_ms, state: State::Waiting };
                self.open.insert(id.number, open);
                self.place(&lane);
            }
        }
    }

    fn take(
        &mut self,
        now_ms: u64,
        allowed: usize,
        bounds: &LaneBounds,
        mut give: impl FnMut(Vec<u64>, u64),
    ) {
        while let Some(entry) = self.timed.first_entry().filter(|entry| entry.key().0 <= now_ms) {
            let number = entry.key().1;
            let key = entry.remove();
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.place = Place::Ready(number);
            }
            self.ready.insert(number, key);
        }
        // An even share of what is free: what was accepted together is sent together, and lies together on the disk.
        let free = allowed.saturating_sub(self.in_hand);
        let longest = bounds.run.min(free.div_ceil(self.ready.len().max(1)));
        while self.in_hand < allowed
            && let Some(key) = self.ready.values().next().map(Arc::clone)
        {
            let (mut numbers, mut bytes) = (Vec::new(), self.in_hand_bytes);
            for number in &self.lanes[&key].numbers {
                let open = &self.open[number];
                let is_first = self.in_hand == 0 && numbers.is_empty();
                bytes += open.bytes;
                let fits = self.in_hand + numbers.len() < allowed && numbers.len() < longest;
                // What has failed before is sent alone: those behind it would be leased in vain.
                let has_failed = open.attempts > 0;
                if !fits
                    || open.due_ms > now_ms
                    || (bytes > bounds.bytes && !is_first)
                    || (has_failed && !numbers.is_empty())
                {
                    break;
                }
                numbers.push(*number);
                if has_failed {
                    break;
                }
            }
            if !numbers.is_empty() {
                numbers.iter().for_each(|number| self.hold(*number));
                give(numbers, self.said);
                continue;
            }
            let head = self.lanes[&key].numbers.first().and_then(|head| self.open.get(head));
            if head.is_none_or(|head| head.due_ms <= now_ms) {
                // It is too large for what is left of the bytes, and nobody overtakes it for that.
                break;
            }
            // The clock went back.
            self.place(&key);
        }
    }

    fn hold(&mut self, number: u64) {
        let Some(open) = self.open.get_mut(&number) else { return };
        debug_assert_eq!(open.state, State::Waiting, "delivery {number} is in hand already");
        open.state = State::InHand;
        self.held.insert(number);
        self.lost.remove(&number);
        self.in_hand += 1;
        self.in_hand_bytes += open.bytes;
        let key = Arc::clone(&open.key);
        if let Some(reading) = &mut self.reading {
            reading.touched.insert(number);
        }
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.in_hand += 1;
        }
        self.place(&key);
    }

    /// Out of the hand; what was in hand for it is free.
    fn let_go(&mut self, number: u64, then: State) -> Option<Arc<str>> {
        let open = self.open.get_mut(&number).filter(|open| open.state == State::InHand)?;
        open.state = then;
        if then == State::Waiting {
            self.held.remove(&number);
        }
        self.in_hand -= 1;
        self.in_hand_bytes -= open.bytes;
        let key = Arc::clone(&open.key);
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.in_hand -= 1;
        }
        Some(key)
    }

    fn release(&mut self, number: u64) {
        if let Some(key) = self.let_go(number, State::Waiting) {
            self.place(&key);
        }
    }

    fn end(&mut self, number: u64) {
        if let Some(key) = self.let_go(number, State::Ended) {
            self.ended += 1;
            self.leave_lane(number, &key);
        }
    }

    fn forget(&mut self, number: u64) {
        self.let_go(number, State::Waiting);
        self.held.remove(&number);
        self.lost.remove(&number);
        if let Some(open) = self.open.remove(&number) {
            match open.state {
                State::Ended => self.ended -= 1,
                State::Waiting | State::InHand => self.leave_lane(number, &open.key),
            }
        }
    }

    fn leave_lane(&mut self, number: u64, key: &Arc<str>) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.numbers.remove(&number);
        }
        self.place(key);
    }

    /// Puts a lane where its head belongs.
    fn place(&mut self, key: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        match std::mem::take(&mut lane.place) {
            Place::Nowhere => {}
            Place::Ready(number) => drop(self.ready.remove(&number)),
            Place::Timed(due_ms, number) => drop(self.timed.remove(&(due_ms, number))),
        }
        let Some(head) = lane.numbers.first().copied() else {
            self.lanes.remove(key);
            return;
        };
        if lane.in_hand > 0 {
            return;
        }
        match self.open.get(&head).map_or(0, |open| open.due_ms) {
            0 => {
                lane.place = Place::Ready(head);
                self.ready.insert(head, Arc::clone(key));
            }
            due_ms => {
                lane.place = Place::Timed(due_ms, head);
                self.timed.insert((due_ms, head), Arc::clone(key));
            }
        }
    }
}

impl Default for LaneBounds {
    fn default() -> Self {
        Self {
            window: limits::WINDOW,
            run: limits::RUN,
            messages: limits::IN_FLIGHT_MESSAGES,
            bytes: limits::IN_FLIGHT_BYTES,
            messages_all: limits::IN_FLIGHT_ALL,
            wait_max_ms: u64::try_from(limits::RETRY_CAP.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
