//! Which trace the work at hand belongs to (W3C Trace Context, `traceparent`): set around a future, handed on by itself.
//!
//! A message that is published, or a request that is asked, inside of a [`Trace::scope`] carries the trace in its header.
//! Whoever handles it enters the scope again (actors do so by themselves), so that what one request causes has one id in
//! every process.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{crypto, envelope::Header};

/// The only version there is; later ones begin with the same fields.
const VERSION: &str = "00";
/// Characters of version, trace id, parent id and flags with the dashes between them.
const TEXT_BYTES: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;
/// The flag for "recorded": our log records everything that its levels let through.
const SAMPLED: u8 = 1;

thread_local! {
    static CURRENT: Cell<Option<Trace>> = const { Cell::new(None) };
}

/// A trace, and the step in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

impl Trace {
    /// A new trace.
    #[allow(clippy::new_without_default, reason = "no two are equal")]
    pub fn new() -> Self {
        let not_zero = |random: u128| random.max(1);
        Self {
            trace_id: not_zero(u128::from_le_bytes(crypto::random())),
            parent_id: u64::from_le_bytes(crypto::random()).max(1),
            flags: SAMPLED,
        }
    }

    /// What a `traceparent` says; `None` if it is none (Trace Context, 3.2): another length, upper case, only zeros.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let is_longer = traceparent.as_bytes().get(TEXT_BYTES);
        let text = traceparent.get(..TEXT_BYTES)?;
        let mut fields = text.split('-');
        let mut field = |bytes| {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            fields.next().filter(|field| field.len() == bytes && field.bytes().all(is_digit))
        };
        let (version, trace_id, parent_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        // A later version may say more behind it; this one may not, and 255 is none.
        if version == "ff" || is_longer.is_some_and(|byte| version == VERSION || *byte != b'-') {
            return None;
        }
        let trace = Self {
            trace_id: u128::from_str_radix(trace_id, 16).ok()?,
            parent_id: u64::from_str_radix(parent_id, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()? & SAMPLED,
        };
        (trace.trace_id != 0 && trace.parent_id != 0).then_some(trace)
    }

    /// The trace that a message belongs to.
    pub fn of(header: &Header) -> Option<Self> {
        Self::parse(header.traceparent.as_deref()?)
    }

    /// The trace of the work that this thread is doing at this moment.
    pub fn current() -> Option<Self> {
        CURRENT.get()
    }

    /// Its id, 32 hexadecimal digits.
    pub fn id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// `work` as part of this trace, or of none.
    pub fn scope<F: Future>(trace: Option<Self>, work: F) -> InTrace<F> {
        InTrace { trace, work: Box::pin(work) }
    }
}

/// As a `traceparent`.
impl fmt::Display for Trace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, parent_id, flags } = self;
        write!(formatter, "{VERSION}-{trace_id:032x}-{parent_id:016x}-{flags:02x}")
    }
}

/// A future at whose every poll the thread works for a trace.
#[derive(Debug)]
pub struct InTrace<F> {
    trace: Option<Trace>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for InTrace<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        /// Puts back what was there, also when the work panics.
        struct Before(Option<Trace>);
        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _before = Before(CURRENT.replace(self.trace));
        self.work.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_as_the_standard_says() {
        let trace = Trace::parse(TEXT).unwrap();
        assert_eq!((trace.to_string().as_str(), trace.id().as_str()), (TEXT, &TEXT[3..35]));
        assert_eq!(Trace::parse(&Trace::new().to_string()).map(|trace| trace.flags), Some(SAMPLED));
        let later = format!("cc{}-what-comes", &TEXT[2..]);
        assert_eq!(Trace::parse(&later).map(|trace| trace.id()), Some(trace.id()));
        for bad in [
            "",
            "x",
            &TEXT[..54],
            &format!("{TEXT}-more"),
            &format!("cc{}more", &TEXT[2..]),
            &format!("ff{}", &TEXT[2..]),
            &TEXT.to_uppercase(),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            &"\u{e9}".repeat(55),
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_scope_holds_while_its_work_is_polled_and_no_longer() {
        let (outer, inner) = (Trace::new(), Trace::new());
        let seen = crate::blocking::wait(Trace::scope(Some(outer), async {
            let within = Trace::scope(Some(inner), async { Trace::current() }).await;
            let without = Trace::scope(None, async { Trace::current() }).await;
            (within, without, Trace::current())
        }));
        assert_eq!(seen, (Some(inner), None, Some(outer)));
        assert_eq!(Trace::current(), None);
    }
}
