//! Records to bytes of peers.

use super::*;

/// Records handed to an attached client at once.
const LOCAL_BATCH: usize = 1024;

impl Reactor {
    /// Writes for every session that has something to send, and ends those that must end, until
    /// neither is left.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            let dirty = self.hub.take_dirty();
            let ending = self.hub.take_ending();
            if dirty.is_empty() && ending.is_empty() {
                return;
            }
            for session in dirty {
                match self.ends.get(&session) {
                    Some(End::Socket(slot)) => self.write(*slot, now),
                    Some(End::Sink(sink)) => deliver_locally(&mut self.hub, session, &Arc::clone(sink)),
                    None => {}
                }
            }
            for (session, Ending { code, text }) in ending {
                self.close_session(session, code, &text, now);
            }
        }
    }

    /// Seals and writes until the kernel takes no more or nothing is left.
    pub(super) fn write(&mut self, slot: usize, now: Instant) {
        loop {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
            connection.lend_output(&mut self.spare_outputs);
            if let Phase::Open { session, speech } = &mut connection.phase {
                let session = *session;
                while connection.engine.output().len() < limits::WRITE_BUFFER_BYTES {
                    let sealed = match speech {
                        Speech::Native { writer, .. } => {
                            match seal_whole(&mut self.hub, session, writer, &mut connection.engine) {
                                // What follows would have to be copied behind it.
                                Ok(true) => break,
                                Ok(false) => {
                                    seal_batch(&mut self.hub, session, writer, &mut connection.engine)
                                }
                                Err(error) => Err(error),
                            }
                        }
                        Speech::Stock(stock) => seal_stock(
                            &mut self.hub,
                            session,
                            stock,
                            &mut connection.engine,
                            &mut connection.unwritten_deliveries,
                        ),
                    };
                    match sealed {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(error) => return self.lose(slot, "protocol", &error.to_string(), now),
                    }
                }
            }
            match connection.write(now) {
                Ok(false) => return,
                Ok(true) => {
                    let delivered = std::mem::take(&mut connection.unwritten_deliveries);
                    connection.unwritten_pongs = 0;
                    match &connection.phase {
                        Phase::Closing => return self.linger(slot, now),
                        Phase::Handshaking | Phase::Lingering => {
                            return connection.release_idle_output(&mut self.spare_outputs);
                        }
                        Phase::Open { session, .. } => {
                            let session = *session;
                            if delivered > 0 {
                                self.hub.stock_delivered(session, delivered);
                            }
                            if !self.hub.has_output(session) && !fragments_wait(connection) {
                                connection.release_idle_output(&mut self.spare_outputs);
                                return;
                            }
                        }
                    }
                }
                Err(error) => return self.lose(slot, "lost", &error.to_string(), now),
            }
        }
    }
}

/// Seals deliveries where they lie in their queue, if they fill a batch of their own; `false` if they do not.
fn seal_whole(
    hub: &mut Hub,
    session: SessionId,
    writer: &BatchWriter,
    engine: &mut Engine,
) -> Result<bool, ZmtpError> {
    if writer.in_fragments() || !engine.output().is_empty() {
        return Ok(false);
    }
    let mut sealed = Ok(());
    let taken = hub.take_batch(session, |draft| {
        sealed = engine.send_draft(draft, FrameFlags::LAST);
        sealed.is_ok()
    });
    sealed.map(|()| taken)
}

/// Seals one batch of whatever is ready; `false` if nothing was.
fn seal_batch(
    hub: &mut Hub,
    session: SessionId,
    writer: &mut BatchWriter,
    engine: &mut Engine,
) -> Result<bool, ZmtpError> {
    let sealed = engine.send_written(FrameFlags::LAST, |out| fill_batch(hub, session, writer, out))?;
    // A record that begins to go out in fragments may have put nothing yet.
    Ok(sealed || writer.in_fragments())
}

/// Appends what is ready to an empty batch, up to the size a batch aims at and one record beyond it.
fn fill_batch(hub: &mut Hub, session: SessionId, writer: &mut BatchWriter, out: &mut Vec<u8>) {
    let start = out.len();
    while out.len() - start < limits::BATCH_BYTES {
        if writer.in_fragments() {
            match hub.next_control(session) {
                Some(record) => writer.put_control(&record, out),
                None => return writer.next_fragment(out),
            }
        } else if !hub.put_next(session, writer, out) {
            return;
        }
    }
}

/// Seals one stock message; `false` if there was none.
fn seal_stock(
    hub: &mut Hub,
    session: SessionId,
    stock: &mut Stock,
    engine: &mut Engine,
    deliveries: &mut u64,
) -> Result<bool, ZmtpError> {
    if stock.is_subscriber() {
        let mut sent = Ok(());
        let delivered = hub.next_stock_delivery(session, |block| sent = send_delivery(engine, block));
        *deliveries += u64::from(delivered);
        return sent.map(|()| delivered);
    }
    let Some(record) = hub.next_record(session) else { return Ok(false) };
    let frames = stock.frames_of(record);
    for (index, frame) in frames.iter().enumerate() {
        let flags = if index + 1 < frames.len() { FrameFlags::MORE } else { FrameFlags::LAST };
        engine.send(&[frame], flags)?;
    }
    Ok(true)
}

fn fragments_wait(connection: &Connection) -> bool {
    matches!(&connection.phase, Phase::Open { speech: Speech::Native { writer, .. }, .. } if writer.in_fragments())
}

/// Hands an attached client all that is for it: deliveries that stand together as batches, all else as values.
fn deliver_locally(hub: &mut Hub, session: SessionId, sink: &Arc<dyn RecordSink>) {
    let (mut records, writer) = (Vec::new(), BatchWriter::default());
    loop {
        let mut batch = Vec::new();
        while batch.len() < limits::BATCH_BYTES && hub.put_deliveries(session, &writer, &mut batch) {}
        let record = if batch.is_empty() { hub.next_record(session) } else { None };
        let is_last = batch.is_empty() && record.is_none();
        records.extend(record);
        if !records.is_empty() && (is_last || !batch.is_empty() || records.len() == LOCAL_BATCH) {
            sink.on_records(&mut records);
            records.clear();
        }
        if is_last {
            return;
        }
        if !batch.is_empty() {
            sink.on_batch(batch.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::hub::fixture::subscription,
        native::{BatchReader, Block, Record},
    };

    #[test]
    fn answers_in_front_of_a_fragment_never_make_a_batch_too_large_and_lose_nothing() {
        let mut hub = Hub::new("broker".parse().unwrap(), 1);
        let session = hub.greeted("peer");
        hub.record(session, Record::Subscribe(subscription(1, false, "large")));
        let payload = vec![7; 3 * limits::RECORD_BYTES_MAX];
        hub.record(session, Record::Publish(Block::new(&"large".parse().unwrap(), b"", &payload)));
        let (mut writer, mut reader, mut out) = (BatchWriter::default(), BatchReader::default(), Vec::new());
        fill_batch(&mut hub, session, &mut writer, &mut out);
        assert!(writer.in_fragments(), "the message goes out in fragments");

        let pings: u64 = 20_000;
        let ping = |number| Record::Ping { number, answer: false };
        (0..pings).for_each(|number| hub.record(session, ping(number)));
        let (mut answered, mut delivered) = (0, false);
        while !out.is_empty() {
            assert!(out.len() <= limits::NATIVE_FRAME_BYTES_MAX, "a batch of {} bytes", out.len());
            reader.begin(std::mem::take(&mut out).into());
            while let Some(record) = reader.next_record().unwrap() {
                match record {
                    Record::Ping { number, answer: true } => {
                        assert_eq!(number, answered);
                        answered += 1;
                    }
                    Record::Deliver { block, .. } => delivered = block.payload()[..] == payload[..],
                    _ => {}
                }
            }
            fill_batch(&mut hub, session, &mut writer, &mut out);
        }
        assert_eq!((answered, delivered), (pings, true));
    }
}
