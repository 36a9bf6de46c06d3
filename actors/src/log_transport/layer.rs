//! The `tracing` layer: makes a record of each event and puts it into the buffer. Never waits, never logs.

use std::fmt;

use tracing::{
    Event, Id, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use super::{
    buffer::LogBuffer,
    path::{self, Marked},
    sink::Sink,
};
use crate::log_record::{Level, LogRecord, topic_level};

/// Bytes of one message or field; the rest is cut off and marked so.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Fields of one record, those of its spans included; more are left out.
const FIELDS_MAX: usize = 128;

/// Who logs, unless an event or a span says otherwise (fields `component` and `incarnation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The component.
    pub component: String,
    /// Which start of it, counted from one; zero if unknown.
    pub incarnation: u64,
}

/// The layer.
///
/// Fields of an event, or of a span around it, that have a meaning of their own: `message`,
/// `component`, `incarnation`, `conversation`, `trace_id`. The innermost wins.
#[derive(Debug)]
pub struct LogLayer {
    identity: Identity,
    buffer: LogBuffer,
    sink: Sink,
}

impl LogLayer {
    /// A layer that fills `buffer`. Events of the log path itself go to `sink`.
    pub fn new(identity: Identity, buffer: LogBuffer, sink: Sink) -> Self {
        Self { identity: Identity { component: topic_level(&identity.component), ..identity }, buffer, sink }
    }
}

/// What a span carries for the records inside it.
struct SpanFields(Fields);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        // What a value does while it is formatted is none of the log's business: events raised
        // there go to the sink.
        let _marked = Marked::enter();
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let _marked = Marked::enter();
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(SpanFields(present)) = span.extensions_mut().get_mut()
        {
            fields.0.extend(std::mem::take(&mut present.0));
            fields.0.truncate(FIELDS_MAX);
            *present = fields;
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let level = Level::from(metadata.level());
        let own = path::is_marked() || path::is_own_target(metadata.target());
        if own && !self.sink.wants(level) {
            return;
        }
        let _marked = Marked::enter();
        let record = self.record(event, level, context.event_scope(event).into_iter().flatten());
        if own { self.sink.write(&record) } else { self.buffer.add(record) }
    }
}

impl LogLayer {
    fn record<'a, S: LookupSpan<'a> + 'a>(
        &self,
        event: &Event<'_>,
        level: Level,
        innermost_first: impl Iterator<Item = SpanRef<'a, S>>,
    ) -> LogRecord {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut record =
            LogRecord::new(level, &self.identity.component, fields.take("message").unwrap_or_default());
        for span in innermost_first {
            record.spans.push(span.name().to_owned());
            if let Some(SpanFields(of_span)) = span.extensions().get() {
                fields.0.extend(of_span.0.iter().cloned());
            }
        }
        record.spans.reverse();
        record.target = metadata.target().to_owned();
        record.file = metadata.file().map(str::to_owned);
        record.line = metadata.line();
        record.incarnation = self.identity.incarnation;
        if let Some(component) = fields.take("component") {
            record.component = topic_level(&component);
            record.incarnation = 0;
        }
        if let Some(incarnation) = fields.take("incarnation").and_then(|number| number.parse().ok()) {
            record.incarnation = incarnation;
        }
        record.conversation = fields.take("conversation");
        record.trace_id = fields.take("trace_id");
        fields.0.truncate(FIELDS_MAX);
        record.fields = fields.0;
        record
    }
}

/// Fields in the order in which they came.
#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl Fields {
    /// The first value of this name; every value of it is taken out.
    fn take(&mut self, name: &str) -> Option<String> {
        let mut found = None;
        self.0.retain_mut(|(key, value)| {
            let other = key != name;
            if !other && found.is_none() {
                found = Some(std::mem::take(value));
            }
            other
        });
        found
    }

    fn put(&mut self, field: &Field, mut value: String) {
        if value.len() > TEXT_BYTES_MAX {
            value.truncate(value.floor_char_boundary(TEXT_BYTES_MAX));
            value.push_str("... (cut off)");
        }
        self.0.push((field.name().to_owned(), value));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors repeat their source in their own text.
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        self.put(field, text);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn layer() -> (LogBuffer, Sink, impl Subscriber + Send + Sync) {
        let buffer = LogBuffer::default();
        let sink = Sink::new(Box::new(std::io::sink()), Level::Warn).unwrap();
        let identity = Identity { component: "runtime".to_owned(), incarnation: 1 };
        let layer = LogLayer::new(identity, buffer.clone(), sink.clone());
        (buffer, sink, tracing_subscriber::registry().with(layer))
    }

    // The target of this very module is one of the log path, so events here name another.

    #[test]
    fn an_event_becomes_a_record_with_everything_that_was_said() {
        let (buffer, _sink, subscriber) = layer();
        tracing::subscriber::with_default(subscriber, || {
            let _outer =
                tracing::info_span!("actor", component = "a/b", incarnation = 3, number = 1).entered();
            let turn =
                tracing::info_span!("turn", conversation = "c1", number = 7, late = tracing::field::Empty);
            let _inner = turn.enter();
            turn.record("late", "x");
            tracing::warn!(target: "elsewhere", answer = 42, text = "t", "the {} message", "whole");
        });
        let record = buffer.take_rest().remove(0);
        assert_eq!((record.level, record.target.as_str()), (Level::Warn, "elsewhere"));
        assert_eq!(record.message, "the whole message");
        assert_eq!((record.component.as_str(), record.incarnation), ("a_b", 3));
        assert_eq!(record.conversation.as_deref(), Some("c1"));
        assert_eq!(record.spans, ["actor", "turn"]);
        let fields: Vec<_> = record.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(fields, ["answer=42", "text=t", "late=x", "number=7", "number=1"]);
        assert!(record.file.is_some_and(|file| file.ends_with("layer.rs")) && record.line.is_some());
        assert_eq!(record.process, std::process::id());
    }

    #[test]
    fn the_log_path_never_logs_into_itself() {
        let (buffer, sink, subscriber) = layer();
        tracing::subscriber::with_default(subscriber, || {
            for level in 0..2 {
                let say = |target: &str| match (target, level) {
                    ("bus", 0) => tracing::error!(target: "interlock_bus::broker", "own"),
                    ("bus", _) => tracing::debug!(target: "interlock_bus::broker", "own"),
                    ("store", _) => tracing::error!(target: "interlock_actors::store::writer", "own"),
                    ("transport", _) => {
                        tracing::error!(target: "interlock_actors::log_transport::drain", "own")
                    }
                    ("consumer", _) => tracing::error!(target: "interlock_actors::log_consumer", "own"),
                    _ => tracing::error!(target: "interlock_actors::storefront", "not own"),
                };
                ["bus", "store", "transport", "consumer", "other"].iter().for_each(|target| say(target));
            }
            let _marked = Marked::enter();
            tracing::error!(target: "some_library", "raised while the log path is at work");
        });
        let rest = buffer.take_rest();
        assert!(rest.iter().all(|record| record.message == "not own") && rest.len() == 2, "{rest:?}");
        assert_eq!((sink.report().seen, sink.report().written), (9, 8));
    }

    #[test]
    fn a_value_that_logs_while_it_is_formatted_ends() {
        struct Talkative;
        impl fmt::Debug for Talkative {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                tracing::error!(target: "test", value = ?Talkative2, "formatting");
                formatter.write_str("talkative")
            }
        }
        struct Talkative2;
        impl fmt::Debug for Talkative2 {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                tracing::error!(target: "test", "formatting again");
                formatter.write_str("talkative")
            }
        }
        let (buffer, sink, subscriber) = layer();
        tracing::subscriber::with_default(
            subscriber,
            || tracing::info!(target: "test", value = ?Talkative, "once"),
        );
        assert_eq!(buffer.take_rest().len(), 1);
        assert!(sink.report().seen <= 2, "{:?}", sink.report());
    }

    #[test]
    fn huge_values_and_many_fields_are_cut() {
        let (buffer, _sink, subscriber) = layer();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "test", big = "\u{e9}".repeat(1 << 20), "{}", "x".repeat(1 << 20));
        });
        let record = buffer.take_rest().remove(0);
        assert!(record.memory_bytes() < 4 * TEXT_BYTES_MAX, "{}", record.memory_bytes());
        assert!(record.message.ends_with("(cut off)"));
    }
}
