//! Numbers in Prometheus' text format 0.0.4, or in OpenMetrics 1.0.

use std::fmt::{Display, Write};

use crate::topics::Distribution;

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only rises, until what counts it is started again.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts by upper bounds.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The text as it grows.
#[derive(Debug)]
pub(super) struct Exposition {
    text: String,
    open_metrics: bool,
}

/// One name, and its numbers by their labels.
#[derive(Debug)]
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: String,
}

impl Exposition {
    pub(super) fn new(open_metrics: bool) -> Self {
        Self { text: String::new(), open_metrics }
    }

    /// Begins a name. That of a counter is given without `_total`.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let sample = if kind == Kind::Counter { format!("{name}_total") } else { name.to_owned() };
        let described = if self.open_metrics { name } else { &sample };
        let _ = writeln!(self.text, "# HELP {described} {help}\n# TYPE {described} {}", kind.as_str());
        Family { text: &mut self.text, name: sample }
    }

    /// A name with one number.
    pub(super) fn one(&mut self, name: &str, kind: Kind, help: &str, number: impl Display) {
        self.family(name, kind, help).sample(&[], number);
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> String {
        if self.open_metrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl Family<'_> {
    /// One number.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], number: impl Display) {
        self.line("", labels, number);
    }

    /// The counts of a histogram by their upper bounds, each with those below it, and the sum of what was counted.
    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut below = 0;
        for (place, count) in counts.iter().enumerate() {
            below += count;
            let bound = bounds.get(place).map_or("+Inf".to_owned(), ToString::to_string);
            let with_bound: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line("_bucket", &with_bound, below);
        }
        self.line("_sum", labels, sum);
        self.line("_count", labels, below);
    }

    /// A histogram whose counts hold those below them already.
    pub(super) fn distribution(&mut self, labels: &[(&str, &str)], of: &Distribution) {
        for bucket in &of.buckets {
            let bound = bucket.at_most.to_string();
            let with_bound: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line("_bucket", &with_bound, bucket.count);
        }
        let with_bound: Vec<_> = labels.iter().copied().chain([("le", "+Inf")]).collect();
        self.line("_bucket", &with_bound, of.count);
        self.line("_sum", labels, of.sum);
        self.line("_count", labels, of.count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], number: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (place, (name, value)) in labels.iter().enumerate() {
            let begin = if place == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{begin}{name}=\"{}\"", escaped(value));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {number}");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(open_metrics: bool) -> String {
        let mut exposition = Exposition::new(open_metrics);
        exposition.one("a_messages", Kind::Counter, "Messages.", 3);
        exposition
            .family("b_topic", Kind::Gauge, "By topic.")
            .sample(&[("topic", "a\"\\\nb"), ("x", "")], 0.5);
        let mut times = exposition.family("c_seconds", Kind::Histogram, "Times.");
        times.histogram(&[("route", "/")], &[0.1, 1.0], &[1, 0, 2], 7.5);
        exposition.finish()
    }

    #[test]
    fn both_formats_say_the_same() {
        let samples = "a_messages_total 3\n\
             # HELP b_topic By topic.\n# TYPE b_topic gauge\nb_topic{topic=\"a\\\"\\\\\\nb\",x=\"\"} 0.5\n\
             # HELP c_seconds Times.\n# TYPE c_seconds histogram\n\
             c_seconds_bucket{route=\"/\",le=\"0.1\"} 1\nc_seconds_bucket{route=\"/\",le=\"1\"} 1\n\
             c_seconds_bucket{route=\"/\",le=\"+Inf\"} 3\nc_seconds_sum{route=\"/\"} 7.5\nc_seconds_count{route=\"/\"} 3\n";
        let head = |name: &str| format!("# HELP {name} Messages.\n# TYPE {name} counter\n");
        assert_eq!(text(false), format!("{}{samples}", head("a_messages_total")));
        assert_eq!(text(true), format!("{}{samples}# EOF\n", head("a_messages")));
    }
}
