//! The body of a record, field by field. All integers are little-endian; `text8` and `text16` are a
//! `u8` or `u16` length and UTF-8.

use bytes::{Buf, Bytes};

use super::record::{CreditScope, RecordError};

/// The longest prefix of `text` that has at most `bytes_max` bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

pub(super) fn put_text8(text: &str, out: &mut Vec<u8>) {
    let text = cut(text, u8::MAX.into());
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn put_text16(text: &str, out: &mut Vec<u8>) {
    let text = cut(text, u16::MAX.into());
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// What stands before the payload of a reply: `header bytes u16 | header`.
pub(super) fn put_part_header(header: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(header.len() as u16).to_le_bytes());
    out.extend_from_slice(header);
}

/// What is left of a record while it is read.
pub(super) struct Body {
    pub(super) kind: u8,
    pub(super) bytes: Bytes,
}

impl Body {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let array = *self.bytes.first_chunk::<N>().ok_or(RecordError::Short { kind: self.kind })?;
        self.bytes.advance(N);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, RecordError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }

    fn split(&mut self, length: usize) -> Result<Bytes, RecordError> {
        if self.bytes.len() < length {
            return Err(RecordError::Short { kind: self.kind });
        }
        Ok(self.bytes.split_to(length))
    }

    fn text(&mut self, length: usize) -> Result<String, RecordError> {
        let bytes = self.split(length)?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_| RecordError::Field { kind: self.kind, field: "text" })?;
        Ok(text.to_owned())
    }

    pub(super) fn text8(&mut self) -> Result<String, RecordError> {
        let length = self.u8()?;
        self.text(length.into())
    }

    pub(super) fn text16(&mut self) -> Result<String, RecordError> {
        let length = self.u16()?;
        self.text(length.into())
    }

    pub(super) fn part(&mut self) -> Result<(Bytes, Bytes), RecordError> {
        let header_bytes = self.u16()?;
        Ok((self.split(header_bytes.into())?, self.rest()))
    }

    pub(super) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn enumerated<T>(
        &mut self,
        field: &'static str,
        from: fn(u8) -> Option<T>,
    ) -> Result<T, RecordError> {
        let byte = self.u8()?;
        from(byte).ok_or(RecordError::Field { kind: self.kind, field })
    }

    pub(super) fn credit_scope(&mut self) -> Result<CreditScope, RecordError> {
        let refuse = |kind| RecordError::Field { kind, field: "credit scope" };
        Ok(match self.u8()? {
            0 => {
                let id = u32::try_from(self.u64()?).map_err(|_| refuse(self.kind))?;
                CreditScope::Subscription { id, messages: self.u64()? }
            }
            1 => CreditScope::Request { id: self.u64()?, parts: self.u64()? },
            2 => {
                let granted = self.u8()? != 0;
                CreditScope::Topic { topic: self.text8()?, granted }
            }
            _ => return Err(refuse(self.kind)),
        })
    }
}
