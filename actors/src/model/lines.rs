//! Lines of a stream, however its bytes are cut: Ollama writes one JSON object on each.

use super::limits::EVENT_BYTES_MAX;

/// Bytes in, lines out.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

/// Why the bytes are no usable lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LinesError {
    #[error("a line is longer than the limit of {EVENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("a line is not UTF-8")]
    NotUtf8,
}

impl Lines {
    /// Takes the next bytes and appends the lines they complete; empty ones are left out.
    pub(super) fn push(&mut self, bytes: &[u8], lines: &mut impl Extend<String>) -> Result<(), LinesError> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.take(&rest[..end])?;
            lines.extend(self.end()?);
            rest = &rest[end + 1..];
        }
        self.take(rest)
    }

    /// What stands behind the last line break.
    pub(super) fn end(&mut self) -> Result<Option<String>, LinesError> {
        let line = String::from_utf8(std::mem::take(&mut self.0)).map_err(|_| LinesError::NotUtf8)?;
        let line = line.trim();
        Ok((!line.is_empty()).then(|| line.to_owned()))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), LinesError> {
        if self.0.len() + bytes.len() > EVENT_BYTES_MAX {
            return Err(LinesError::TooLong);
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Result<Vec<String>, LinesError> {
        let (mut stream, mut lines) = (Lines::default(), Vec::new());
        for piece in pieces {
            stream.push(piece, &mut lines)?;
        }
        lines.extend(stream.end()?);
        Ok(lines)
    }

    #[test]
    fn an_endless_line_is_refused_and_so_is_what_is_no_text() {
        assert_eq!(lines(&[&vec![b'x'; EVENT_BYTES_MAX + 1]]), Err(LinesError::TooLong));
        assert_eq!(lines(&[b"\xff\n"]), Err(LinesError::NotUtf8));
        assert_eq!(lines(&[b"one\r\n\ntwo"]).unwrap(), ["one", "two"]);
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            text in "([a-z\u{e9}]{0,5}\r?\n){0,8}[a-z]{0,3}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
            prop_assert_eq!(lines(&pieces).unwrap(), expected);
        }
    }
}
