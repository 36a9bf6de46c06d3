//! Server-sent events, as much of them as completions need: the `data` of each event.
//!
//! Source: WHATWG HTML, 9.2.6 "Interpreting an event stream". Written here because an event must
//! have a largest size: a server that never ends a line must not fill the memory.

use super::limits::EVENT_BYTES_MAX;

/// Bytes in, data of events out.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_carriage_return: bool,
}

/// Why the bytes are no usable event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EventStreamError {
    #[error("an event is longer than the limit of {EVENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotUtf8,
}

impl EventStream {
    /// Takes the next bytes, however they are cut, and appends the events they complete.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        events: &mut impl Extend<String>,
    ) -> Result<(), EventStreamError> {
        for &byte in bytes {
            let follows = std::mem::take(&mut self.after_carriage_return);
            match byte {
                b'\n' if follows => {}
                b'\n' | b'\r' => {
                    self.after_carriage_return = byte == b'\r';
                    events.extend(self.end_line()?);
                }
                _ if self.line.len() + self.data.len() >= EVENT_BYTES_MAX => {
                    return Err(EventStreamError::TooLong);
                }
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<String>, EventStreamError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return match std::mem::take(&mut self.has_data) {
                true => String::from_utf8(data).map(Some).map_err(|_| EventStreamError::NotUtf8),
                false => Ok(None),
            };
        }
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line);
        let data = match line.strip_prefix(b"data") {
            Some([]) => &[],
            Some([b':', b' ', data @ ..] | [b':', data @ ..]) => data,
            _ => return Ok(None),
        };
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(data);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]]) -> Result<Vec<String>, EventStreamError> {
        let mut stream = EventStream::default();
        let mut events = Vec::new();
        pieces.iter().try_for_each(|piece| stream.push(piece, &mut events)).map(|()| events)
    }

    #[test]
    fn data_of_events_comes_out_and_the_rest_is_skipped() {
        let text = b": hello\n\nevent: x\ndata: one\nid: 4\n\ndata:two\r\ndata: three\r\n\r\ndata\n\nretry: 5\n\ndata: cut";
        assert_eq!(events(&[text]).unwrap(), ["one", "two\nthree", ""]);
    }

    #[test]
    fn an_endless_line_or_event_is_refused() {
        let long = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert_eq!(events(&[&long]), Err(EventStreamError::TooLong));
        let line = [b"data: ".to_vec(), vec![b'x'; 1000], b"\n".to_vec()].concat();
        assert_eq!(events(&[&line.repeat(EVENT_BYTES_MAX / 1000 + 1)]), Err(EventStreamError::TooLong));
        assert_eq!(events(&[b"data: \xff\n\n"]), Err(EventStreamError::NotUtf8));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            text in "(data: [a-z\u{e9}]{0,5}(\r\n|\n|\r)|(\r\n|\n|\r)|:x\n){0,12}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events(&pieces), events(&[bytes]));
        }
    }
}
