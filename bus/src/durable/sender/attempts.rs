//! Attempts: sent one after the other, and what their ends come to.

use super::*;

impl Sender {
    /// Sends the next message of a run.
    pub(super) fn send_next(&mut self, mut rest: VecDeque<Leased>, said: u64) {
        let Some(sent) = rest.pop_front() else { return };
        self.counts.attempts += 1;
        let flight = self.next_flight;
        self.next_flight += 1;
        let attempt =
            attempt::attempt(self.client.clone(), sent.clone(), self.shared.options.attempt_deadline);
        self.attempts.push(Box::pin(attempt.map(move |ended| (flight, ended))));
        self.flights.insert(flight, Flight { sent, rest, said });
    }

    pub(super) fn on_attempted(&mut self, flight: u64, ended: Ended) {
        let Some(Flight { sent, rest, said }) = self.flights.remove(&flight) else { return };
        let goes_on = self.conclude(sent, ended, said);
        if goes_on && self.stop_at.is_none() && self.link == LinkState::Ready {
            self.send_next(rest, said);
        } else {
            self.not_sent(rest);
        }
    }

    /// Takes note of an attempt's end. Gives whether those behind it in its lane may be sent.
    pub(super) fn conclude(&mut self, leased: Leased, ended: Ended, said: u64) -> bool {
        let Leased { id, attempt, message, .. } = leased;
        // Chance takes a system call, and decides only when the next attempt is.
        let chance = match ended {
            Ended::Acknowledged => 0,
            _ => u64::from_le_bytes(crypto::random()),
        };
        let now_ms = now_ms();
        let Verdict { outcome, consumer } =
            attempt::verdict(ended, attempt, &self.shared.options.schedule, now_ms, chance);
        match consumer {
            Said::Absent => {
                self.counts.attempts -= 1;
                if self.lanes.absent(&id.consumer, said, now_ms) {
                    tracing::info!(consumer = %id.consumer, "nobody serves as this consumer; what is for it waits");
                }
            }
            Said::Present | Said::Lost | Said::Denied => {
                self.lanes.present(&id.consumer);
            }
            Said::Nothing => {}
        }
        match (consumer, reason_of(&outcome)) {
            (Said::Denied, Some(reason)) => self.on_denied(&id.consumer, reason),
            (Said::Present | Said::Lost, _) => drop(self.denied.remove(&id.consumer)),
            _ => {}
        }
        match (&outcome, reason_of(&outcome)) {
            (Outcome::Acknowledged, _) => drop(self.last_reasons.remove(&id.consumer)),
            (_, Some(reason)) => drop(self.last_reasons.insert(id.consumer.clone(), reason.to_owned())),
            _ => {}
        }
        if let Outcome::Dead { reason } = &outcome {
            tracing::warn!(%message, number = id.number, consumer = %id.consumer, attempt, reason, "a message became a dead letter");
        }
        let is_over = matches!(outcome, Outcome::Acknowledged | Outcome::Dead { .. });
        self.settle(Ending {
            id,
            attempt,
            message,
            outcome,
            lost: (consumer == Said::Lost).then_some(said),
            is_told: false,
        });
        is_over
    }

    pub(super) fn on_denied(&mut self, consumer: &PeerName, reason: &str) {
        if self.denied.insert(consumer.clone(), reason.to_owned()).is_none() {
            tracing::error!(%consumer, reason, "the broker does not let the outbox deliver");
        }
    }

    pub(super) fn settle(&mut self, ending: Ending) {
        if matches!(ending.outcome, Outcome::Acknowledged | Outcome::Dead { .. }) {
            self.lanes.ended(&ending.id);
        }
        self.unsettled.push(ending);
    }

    /// Takes leases back, and with them the attempts: nothing was sent.
    pub(super) fn not_sent(&mut self, leased: impl IntoIterator<Item = Leased>) {
        for Leased { id, attempt, message, .. } in leased {
            let outcome = Outcome::Unsent;
            self.settle(Ending { id, attempt, message, outcome, lost: None, is_told: false });
        }
    }

    /// Makes a dead letter of what has waited too long for its consumer.
    pub(super) fn give_up(&mut self, leased: Leased) {
        let absent_max_ms = self.absent_max_ms();
        if leased.accepted_ms.saturating_add(absent_max_ms) > now_ms() || self.stop_at.is_some() {
            self.giving_up = false;
            return self.not_sent([leased]);
        }
        let Leased { id, attempt, message, .. } = leased;
        let reason = format!(
            "`{}` did not serve for {} s, the limit (`outbox.absent_max`); this attempt was not sent",
            id.consumer,
            absent_max_ms / 1000
        );
        tracing::warn!(%message, number = id.number, consumer = %id.consumer, reason, "a message became a dead letter");
        let outcome = Outcome::Dead { reason };
        self.settle(Ending { id, attempt, message, outcome, lost: None, is_told: false });
    }
}

fn reason_of(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Retry { reason, .. } | Outcome::Dead { reason } => Some(reason),
        Outcome::Acknowledged | Outcome::Unsent => None,
    }
}
