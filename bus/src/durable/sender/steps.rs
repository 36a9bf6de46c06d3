//! Steps of the storage: which can be started, and what follows from their ends.

use super::*;

impl Sender {
    /// Starts every step that can be started.
    pub(super) fn pump(&mut self) {
        self.pumped_ms = now_ms();
        if !self.must_pause(Kind::Write) {
            self.start_writes();
        }
        if self.is_sender && !self.in_doubt && self.stop_at.is_none() && !self.must_pause(Kind::Read) {
            self.start_reads();
        }
    }

    pub(super) fn must_pause(&self, kind: Kind) -> bool {
        self.troubles[kind as usize].as_ref().is_some_and(|trouble| trouble.until > Instant::now())
    }

    pub(super) fn start_writes(&mut self) {
        let storage = Arc::clone(&self.shared.storage);
        if self.in_doubt && !self.becoming && self.stop_at.is_none() && !self.has_anything_in_hand() {
            self.becoming = true;
            let storage = Arc::clone(&storage);
            self.steps.push(Box::pin(async move { StepEnd::BecameSender(storage.become_sender().await) }));
        }
        if !self.is_sender {
            return;
        }
        if !self.settling && !self.unsettled.is_empty() {
            self.settling = true;
            let endings = std::mem::take(&mut self.unsettled);
            let settled = endings.iter().map(Ending::settled).collect();
            let storage = Arc::clone(&storage);
            self.steps.push(Box::pin(async move {
                let result = storage.settle(settled).await;
                StepEnd::Settled(endings, result)
            }));
        }
        let may_lease = !self.leasing && !self.unsaved && !self.in_doubt && self.stop_at.is_none();
        if !may_lease || self.link != LinkState::Ready {
            return;
        }
        let (runs, purpose) = self.next_runs();
        if !runs.is_empty() {
            self.leasing = true;
            let ids = runs.iter().flat_map(ids_of).collect();
            self.steps.push(Box::pin(async move {
                let result = storage.lease(ids).await;
                StepEnd::Leased(runs, purpose, result)
            }));
        }
    }

    pub(super) fn start_reads(&mut self) {
        let storage = Arc::clone(&self.shared.storage);
        if self.unlisted && !self.listing {
            (self.unlisted, self.listing) = (false, true);
            let storage = Arc::clone(&storage);
            self.steps.push(Box::pin(async move { StepEnd::Consumers(storage.open_consumers().await) }));
        }
        if !self.reading
            && let Some(read) = self.lanes.begin_read()
        {
            self.reading = true;
            self.steps.push(Box::pin(async move {
                let result = storage.open_deliveries(&read.consumer, read.after, read.limit).await;
                StepEnd::Read(read.consumer, result)
            }));
        }
    }

    pub(super) fn next_runs(&mut self) -> (Vec<Run>, Purpose) {
        let now_ms = now_ms();
        if self.giving_up {
            let absent_max_ms = self.absent_max_ms();
            match self.lanes.take_overdue(now_ms.saturating_sub(absent_max_ms)) {
                Some(run) => return (vec![run], Purpose::GiveUp),
                None => self.giving_up = false,
            }
        }
        (self.lanes.take(now_ms), Purpose::Send)
    }

    pub(super) fn absent_max_ms(&self) -> u64 {
        u64::try_from(self.shared.options.absent_max.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn on_step(&mut self, end: StepEnd) {
        match end {
            StepEnd::BecameSender(result) => {
                self.becoming = false;
                if let Some(taken_back) = self.judge(Kind::Write, "take the lock of the sender", result) {
                    if taken_back > 0 {
                        tracing::info!(taken_back, "leases that were left behind are taken back");
                    }
                    self.counts.taken_back += taken_back;
                    (self.is_sender, self.in_doubt) = (true, false);
                    self.lanes.sweep();
                }
            }
            StepEnd::Consumers(result) => {
                self.listing = false;
                match self.judge(Kind::Read, "read who is waited for", result) {
                    Some(listed) => {
                        for (consumer, _) in &listed {
                            self.lanes.meet(consumer);
                        }
                        self.listed = listed.into_iter().collect();
                    }
                    None => self.unlisted = true,
                }
            }
            StepEnd::Read(consumer, result) => {
                self.reading = false;
                match self.judge(Kind::Read, "read what is open", result) {
                    Some(found) => self.lanes.loaded(&consumer, found, now_ms()),
                    None => self.lanes.unread(&consumer),
                }
            }
            StepEnd::Leased(runs, purpose, result) => {
                self.leasing = false;
                match self.judge(Kind::Write, "write down that attempts begin", result) {
                    Some(leased) => self.on_leased(runs, purpose, leased),
                    None => {
                        // Nothing is sent. Whether the leases stand nobody knows; they are taken back before the next.
                        self.in_doubt = true;
                        runs.iter().flat_map(ids_of).for_each(|id| self.lanes.back(&id));
                    }
                }
            }
            StepEnd::Settled(endings, result) => {
                self.settling = false;
                self.on_settled(endings, result);
            }
        }
    }

    /// What a step has given; a failure is told of once, and makes the steps after it wait.
    pub(super) fn judge<T>(&mut self, kind: Kind, what: &str, result: Result<T, StorageError>) -> Option<T> {
        match result {
            Ok(value) => {
                if self.troubles[kind as usize].take().is_some() {
                    tracing::info!("the outbox's storage can be used again");
                }
                Some(value)
            }
            Err(error) => {
                self.counts.storage_failures += 1;
                let trouble = &mut self.troubles[kind as usize];
                if trouble.is_none() {
                    tracing::error!(%error, "the outbox cannot {what}; it tries again");
                }
                let until = Instant::now() + self.shared.options.storage_pause;
                *trouble = Some(Trouble { text: format!("cannot {what}: {error}"), until });
                None
            }
        }
    }

    pub(super) fn on_leased(&mut self, runs: Vec<Run>, purpose: Purpose, leased: Vec<Leased>) {
        let mut leased: HashMap<DeliveryId, Leased> =
            leased.into_iter().map(|leased| (leased.id.clone(), leased)).collect();
        for run in runs {
            let mut given = VecDeque::new();
            for id in ids_of(&run) {
                match leased.remove(&id) {
                    Some(leased) => given.push_back(leased),
                    // Somebody dropped it, or it could not be read.
                    None => self.lanes.gone(&id),
                }
            }
            match purpose {
                Purpose::GiveUp => given.into_iter().for_each(|leased| self.give_up(leased)),
                Purpose::Send if self.stop_at.is_some() => self.not_sent(given),
                Purpose::Send => self.send_next(given, run.said),
            }
        }
    }

    pub(super) fn on_settled(&mut self, mut endings: Vec<Ending>, result: Result<(), StorageError>) {
        let error = result.as_ref().err().cloned();
        self.unsaved = self.judge(Kind::Write, "save what became of attempts", result).is_none();
        if self.unsaved {
            for ending in endings.iter_mut().filter(|ending| !ending.is_told) {
                ending.is_told = true;
                let Ending { id, attempt, message, outcome, .. } = ending;
                let (cause, consumer) = (said_of(outcome), &id.consumer);
                let problem = error.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::error!(
                    %message, number = id.number, %consumer, attempt = *attempt, outcome = %cause, %problem,
                    "what became of a delivery cannot be saved; it is kept in memory, and sent again if this process ends"
                );
            }
            endings.append(&mut self.unsettled);
            self.unsettled = endings;
            return;
        }
        let mut has_room = false;
        for Ending { id, attempt, outcome, lost, .. } in endings {
            match outcome {
                Outcome::Acknowledged => {
                    self.counts.acknowledged += 1;
                    has_room = true;
                    self.lanes.gone(&id);
                }
                Outcome::Dead { .. } => {
                    self.counts.dead += 1;
                    has_room = true;
                    self.lanes.gone(&id);
                }
                Outcome::Retry { due_ms, .. } => {
                    self.counts.retried += 1;
                    self.lanes.waits(&id, attempt, due_ms, lost);
                }
                Outcome::Unsent => {
                    self.counts.unsent += 1;
                    self.lanes.back(&id);
                }
            }
        }
        if has_room {
            self.shared.door.room();
        }
    }
}

fn ids_of(run: &Run) -> impl Iterator<Item = DeliveryId> {
    run.numbers.iter().map(|number| DeliveryId { number: *number, consumer: run.consumer.clone() })
}

/// An outcome in a sentence.
fn said_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Acknowledged => "acknowledged".to_owned(),
        Outcome::Unsent => "not sent".to_owned(),
        Outcome::Retry { reason, .. } => format!("failed: {reason}"),
        Outcome::Dead { reason } => format!("failed for good: {reason}"),
    }
}
