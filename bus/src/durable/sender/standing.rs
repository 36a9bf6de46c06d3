//! How an outbox stands, and when it is to look again.

use super::*;

impl Sender {
    /// When the loop is to look again although nothing has happened.
    pub(super) fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let pauses = self.troubles.iter().flatten().map(|trouble| trouble.until).filter(|until| *until > now);
        let mut wake_at = pauses.fold(self.sweep_at, Instant::min);
        // What was due when `pump` looked is taken after the step under way.
        if let Some(due_ms) = self.lanes.next_due_ms().filter(|due_ms| *due_ms > self.pumped_ms) {
            wake_at = wake_at.min(now + Duration::from_millis(due_ms.saturating_sub(now_ms())));
        }
        if let Some(reported_at) = self.reported_at.filter(|_| self.is_stale) {
            wake_at = wake_at.min(reported_at + REPORT_INTERVAL);
        }
        wake_at
    }

    pub(super) fn report(&mut self, on_report: &mut impl FnMut(&OutboxReport)) {
        let state = self.derived_state();
        let is_due = self.is_stale && self.reported_at.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
        if is_due || self.state != state {
            self.state = state;
            self.publish(on_report);
        }
    }

    pub(super) fn publish(&mut self, on_report: &mut impl FnMut(&OutboxReport)) {
        self.is_stale = false;
        self.reported_at = Some(Instant::now());
        let report = self.current_report();
        if *self.shared.report.borrow() != report {
            on_report(&report);
            self.shared.report.send_replace(report);
        }
    }

    pub(super) fn derived_state(&self) -> OutboxState {
        match () {
            () if self.stop_at.is_some() => OutboxState::Stopping,
            () if self.is_impaired() => OutboxState::Impaired,
            () if !self.is_sender => OutboxState::Waiting,
            () => OutboxState::Running,
        }
    }

    pub(super) fn is_impaired(&self) -> bool {
        let is_lost = matches!(self.link, LinkState::Lost { .. });
        is_lost || self.unsaved || !self.denied.is_empty() || self.troubles.iter().any(Option::is_some)
    }

    /// Why it is impaired.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<_> =
            self.troubles.iter().flatten().map(|trouble| trouble.text.clone()).collect();
        let unsaved = self.unsettled.iter().filter(|ending| ending.is_told).count();
        if unsaved > 0 {
            reasons.push(format!("what became of {unsaved} deliveries could not be saved yet"));
        }
        if let LinkState::Lost { reason } = &self.link {
            reasons.push(format!("the link to the broker is lost: {reason}"));
        }
        reasons.extend(self.denied.values().cloned());
        reasons
    }

    pub(super) fn current_report(&self) -> OutboxReport {
        let mut consumers: BTreeMap<PeerName, ConsumerReport> = BTreeMap::new();
        for name in self.shared.door.routes().names() {
            consumers.entry(name.clone()).or_default();
        }
        for (name, standing) in self.lanes.standings() {
            let listed = self.listed.get(name).copied().unwrap_or(0);
            let known = if standing.is_partial { standing.known.max(listed) } else { standing.known };
            let report = ConsumerReport {
                waiting: known.saturating_sub(standing.in_hand),
                in_flight: standing.in_hand,
                absent_since_ms: standing.absent_since_ms,
                last_reason: None,
            };
            consumers.insert(name.clone(), report);
        }
        for (name, reason) in &self.last_reasons {
            consumers.entry(name.clone()).or_default().last_reason = Some(reason.clone());
        }
        let door = self.shared.door.counts();
        let counts = OutboxCounts {
            accepted: door.accepted,
            accepted_again: door.again,
            refused: door.refused,
            puts_waiting: door.waiting,
            ..self.counts.clone()
        };
        OutboxReport { state: self.state, reasons: self.reasons(), consumers, counts }
    }
}
