//! Batches of publishes, taken by runs: what all messages of a run share is done once for all of them.

use smallvec::{SmallVec, smallvec};

use super::*;

/// Messages of one run at most: enough for the shared work not to be seen, few enough for the stack.
const RUN_MESSAGES_MAX: usize = 64;

/// Whether a publish asks for nothing but to be delivered.
fn is_plain(block: &BlockView<'_>) -> bool {
    block.flags & !Block::PARTS == 0
        && block.deadline_ms == 0
        && block.bytes() <= SendQueue::RUN_BLOCK_BYTES_MAX
}

impl Hub {
    /// Takes a batch of a native session.
    ///
    /// # Errors
    /// What is no batch; the session must end.
    pub fn batch(
        &mut self,
        id: SessionId,
        reader: &mut BatchReader,
        mut batch: &[u8],
    ) -> Result<(), RecordError> {
        let is_greeted = |hub: &Self| hub.session(id).is_some_and(|session| session.greeted);
        while let Some(incoming) = reader.next_in(&mut batch)? {
            match incoming {
                Incoming::Publish(first) if is_plain(&first) && is_greeted(self) => {
                    let mut run: SmallVec<[BlockView<'_>; RUN_MESSAGES_MAX]> = smallvec![first];
                    let belongs = |next: &BlockView<'_>| is_plain(next) && next.topic() == first.topic();
                    while run.len() < RUN_MESSAGES_MAX
                        && let Some(next) = batch::next_publish_if(&mut batch, belongs)
                    {
                        run.push(next);
                    }
                    if !self.publish_run(id, &run) {
                        run.iter().for_each(|block| self.on_publish(id, block.to_block()));
                    }
                }
                Incoming::Publish(block) => self.record(id, Record::Publish(block.to_block())),
                Incoming::Record(record) => self.record(id, record),
            }
        }
        Ok(())
    }

    /// Publishes a message of a stock publisher, topic and payload, if nothing is unusual about it.
    /// `false` if it must be published as a block.
    pub(super) fn publish_plain(&mut self, id: SessionId, topic: &[u8], payload: &[u8]) -> bool {
        if topic.is_empty() || topic.len() > limits::TOPIC_BYTES_MAX {
            return false;
        }
        let block = BlockView::new(topic, payload);
        is_plain(&block) && self.publish_run(id, &[block])
    }

    /// Publishes plain messages of one topic; the same as [`Hub::publish`] for each of them. `false` if
    /// that must be called, because they are refused or go to a queue group.
    fn publish_run(&mut self, id: SessionId, run: &[BlockView<'_>]) -> bool {
        let route = self.route(id, run[0].topic()).ok();
        let Some(route) = route.filter(|route| route.may_publish && route.groups.is_empty()) else {
            return false;
        };
        let messages = run.len() as u64;
        let first_sequence = self.sequence + 1;
        self.sequence += messages;
        if let Some(session) = self.session_mut(id) {
            session.counts.published += messages;
        }
        self.statistics.count(route.statistics, run.iter().map(BlockView::payload_bytes), self.now_ms);
        // The first one waited longest for its batch to go.
        self.count_delay(route.statistics, codec::published_at_ns(run[0].header()));
        route.denied.iter().for_each(|row| self.ledger.denied(*row, messages));
        let origin = route.origin;
        let blocks = (first_sequence..).zip(run).map(|(sequence, block)| block.stamped(origin, sequence));
        for target in &route.targets {
            self.push_run(target, &route.topic, origin, blocks.clone(), id);
        }
        if route.targets.is_empty() && route.denied.is_empty() {
            self.ledger.dropped(route.nobody, messages, DropReason::NoSubscriber);
        }
        true
    }

    fn push_run<'a>(
        &mut self,
        target: &Target,
        topic: &TopicName,
        origin: u32,
        blocks: impl Iterator<Item = BlockView<'a>> + Clone,
        from: SessionId,
    ) {
        let mut values = false;
        let pushed = self.push_with(target, |lane, spare, dropped| {
            values = !blocks.clone().all(|block| lane.queue.takes_as_bytes(block.bytes()));
            match values {
                true => PushedRun::default(),
                false => {
                    lane.queue.push_run(&target.subscriptions, target.row, blocks.clone(), spare, dropped)
                }
            }
        });
        if values {
            for block in blocks {
                self.push(target, block.to_block(), None, from);
            }
        } else {
            self.settle_push(target, &pushed, origin, Some(topic), from);
        }
    }
}
