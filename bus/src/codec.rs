//! Headers and serde payloads to bytes and back: bincode's format and JSON. The only file that
//! names the encoder.
//!
//! The format is that of `bincode` 1 (`legacy()` in `bincode` 2): little-endian, fixed-width
//! integers, `u64` lengths, `u32` enum variants. It is written by `wincode`, which refuses hostile
//! lengths where `bincode` panics or aborts; a test holds both to the same bytes.

use bytes::Bytes;
use serde_wincode::SerdeCompat;
use uuid::Uuid;

use crate::{
    envelope::{ContentType, DeliveryMark, Header, StreamMark},
    limits,
    topic::{TopicError, TopicName},
};

/// Why a value could not be encoded or bytes could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value has no form in bincode's format (for example a sequence of unknown length).
    #[error("value cannot be encoded in bincode's format: {0}")]
    Encode(#[source] wincode::WriteError),
    /// The bytes are not the expected type in bincode's format.
    #[error("{bytes} bytes are not a `{expected}` in bincode's format: {source}")]
    Decode {
        /// What was expected: the type's name without its path.
        expected: &'static str,
        /// How many bytes there were.
        bytes: usize,
        /// What the decoder says.
        source: wincode::ReadError,
    },
    /// The value or the bytes are not the expected JSON.
    #[error("JSON does not fit: {0}")]
    Json(#[from] serde_json::Error),
    /// A header that ends too early or holds something impossible.
    #[error("message header is damaged: {problem}")]
    Header {
        /// What is wrong.
        problem: &'static str,
    },
    /// A reply-to in a header that is no topic name.
    #[error("message header names a reply-to that is no topic: {0}")]
    ReplyTo(#[from] TopicError),
}

/// A value in bincode's format.
///
/// # Errors
/// [`CodecError::Encode`]: the value has no form in the format.
pub fn to_bytes<T: serde::Serialize + ?Sized>(value: &T) -> Result<Bytes, CodecError> {
    <SerdeCompat<&T> as wincode::Serialize>::serialize(&value).map(Bytes::from).map_err(CodecError::Encode)
}

/// A value from bincode's format. Lengths are checked against the bytes that are there.
///
/// # Errors
/// [`CodecError::Decode`]: they are not that type, or there are more of them.
pub fn from_bytes<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    <SerdeCompat<T> as wincode::Deserialize>::deserialize(bytes).map_err(|source| CodecError::Decode {
        expected: name_of::<T>(),
        bytes: bytes.len(),
        source,
    })
}

/// The name of a type without the modules in front and the parameters behind it.
fn name_of<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    let name = name.split('<').next().unwrap_or(name);
    name.rsplit("::").next().unwrap_or(name)
}

/// A value as JSON.
///
/// # Errors
/// [`CodecError::Json`]: the value has no form in JSON.
pub fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> Result<Bytes, CodecError> {
    Ok(Bytes::from(serde_json::to_vec(value)?))
}

/// A value from JSON.
///
/// # Errors
/// [`CodecError::Json`]: they are not JSON, or not of that type.
pub fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Ok(serde_json::from_slice(bytes)?)
}

/// Tags of the facts behind a header's fixed part. New facts get new tags; readers skip unknown ones.
mod fact {
    pub(super) const CONTENT_TYPE: u16 = 1;
    pub(super) const REPLY_TO: u16 = 2;
    pub(super) const CORRELATION: u16 = 3;
    pub(super) const SCHEMA: u16 = 4;
    pub(super) const TRACEPARENT: u16 = 5;
    pub(super) const USER: u16 = 6;
    pub(super) const STREAM: u16 = 7;
    pub(super) const KEY: u16 = 8;
    pub(super) const DELIVERY: u16 = 9;
}

/// Bytes of a header without facts: id, time and the number of facts.
pub(crate) const PLAIN_HEADER_BYTES: usize = 16 + 8 + 8;

/// Appends `header` in the form `bus/WIRE.md` calls "header": bincode's format of
/// `(id: [u8; 16], published_at_ns: u64, facts: Vec<(u16, Vec<u8>)>)`.
pub fn put_header(header: &Header, out: &mut Vec<u8>) {
    if let Some(bytes) = plain_header(header) {
        return out.extend_from_slice(&bytes);
    }
    out.extend_from_slice(header.id.as_bytes());
    out.extend_from_slice(&header.published_at_ns.to_le_bytes());
    let count_at = out.len();
    out.extend_from_slice(&0u64.to_le_bytes());
    let mut count = 0u64;
    let mut put = |tag: u16, bytes: &[&[u8]]| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&(bytes.iter().map(|part| part.len()).sum::<usize>() as u64).to_le_bytes());
        bytes.iter().for_each(|part| out.extend_from_slice(part));
        count += 1;
    };
    if header.content_type != ContentType::Bytes {
        put(fact::CONTENT_TYPE, &[header.content_type.as_str().as_bytes()]);
    }
    if let Some(topic) = &header.reply_to {
        put(fact::REPLY_TO, &[topic.as_str().as_bytes()]);
    }
    if let Some(id) = &header.correlation {
        put(fact::CORRELATION, &[id.as_bytes()]);
    }
    if let Some(schema) = header.schema {
        put(fact::SCHEMA, &[&schema.to_le_bytes()]);
    }
    if let Some(traceparent) = &header.traceparent {
        put(fact::TRACEPARENT, &[traceparent.as_bytes()]);
    }
    if let Some(mark) = &header.stream {
        let StreamMark { stream, sequence, previous, taken, again } = &**mark;
        let numbers = [sequence, previous, taken].map(|number| number.to_le_bytes());
        put(fact::STREAM, &[stream.as_bytes(), numbers.as_flattened(), &[u8::from(*again)]]);
    }
    if let Some(key) = header.key() {
        put(fact::KEY, &[key.as_bytes()]);
    }
    if let Some(mark) = header.delivery() {
        put(fact::DELIVERY, &[&delivery_value(mark)]);
    }
    for (name, value) in &header.user {
        let name_bytes = (name.len().min(usize::from(u16::MAX)) as u16).to_le_bytes();
        put(
            fact::USER,
            &[&name_bytes, &name.as_bytes()[..name.len().min(usize::from(u16::MAX))], value.as_bytes()],
        );
    }
    out[count_at..count_at + 8].copy_from_slice(&count.to_le_bytes());
}

/// A header that says no more than id and time, as most do; `None` if it says more.
pub(crate) fn plain_header(header: &Header) -> Option<[u8; PLAIN_HEADER_BYTES]> {
    let Header {
        id,
        published_at_ns,
        content_type,
        reply_to,
        correlation,
        schema,
        traceparent,
        stream,
        durable,
        user,
    } = header;
    let is_plain = *content_type == ContentType::Bytes
        && reply_to.is_none()
        && correlation.is_none()
        && schema.is_none()
        && traceparent.is_none()
        && stream.is_none()
        && durable.is_none()
        && user.is_empty();
    is_plain.then(|| {
        let mut bytes = [0; PLAIN_HEADER_BYTES];
        bytes[..16].copy_from_slice(id.as_bytes());
        bytes[16..24].copy_from_slice(&published_at_ns.to_le_bytes());
        bytes
    })
}

/// Reads what [`put_header`] wrote. No bytes at all are [`Header::absent`].
///
/// # Errors
/// [`CodecError::Header`] and [`CodecError::ReplyTo`]: it is cut short, too long, or says something impossible.
pub fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    const SHORT: CodecError = CodecError::Header { problem: "it ends too early" };
    let mut header = Header::absent();
    if bytes.is_empty() {
        return Ok(header);
    }
    if bytes.len() > limits::HEADER_BYTES_MAX {
        return Err(CodecError::Header { problem: "it is longer than 65535 bytes" });
    }
    let (id, rest) = bytes.split_first_chunk::<16>().ok_or(SHORT)?;
    let (published_at_ns, rest) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
    let (count, mut rest) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
    header.id = Uuid::from_bytes(*id);
    header.published_at_ns = u64::from_le_bytes(*published_at_ns);
    for _ in 0..u64::from_le_bytes(*count) {
        let (tag, after_tag) = rest.split_first_chunk::<2>().ok_or(SHORT)?;
        let (length, after_length) = after_tag.split_first_chunk::<8>().ok_or(SHORT)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| SHORT)?;
        let (value, after_value) = after_length.split_at_checked(length).ok_or(SHORT)?;
        rest = after_value;
        take_fact(&mut header, u16::from_le_bytes(*tag), value)?;
    }
    Ok(header)
}

/// When a message says that it was published, in nanoseconds since the Unix epoch, without reading the rest of its
/// header; `None` if it does not say.
pub(crate) fn published_at_ns(header: &[u8]) -> Option<u64> {
    let time = header.get(16..24)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*time)).filter(|time| *time != 0)
}

fn take_fact(header: &mut Header, tag: u16, value: &[u8]) -> Result<(), CodecError> {
    const NOT_TEXT: CodecError = CodecError::Header { problem: "a text in it is not UTF-8" };
    const WRONG_SIZE: CodecError = CodecError::Header { problem: "a value in it has the wrong size" };
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| NOT_TEXT);
    match tag {
        fact::CONTENT_TYPE => header.content_type = ContentType::parse(&text(value)?),
        fact::REPLY_TO => header.reply_to = Some(TopicName::from_bytes(value)?),
        fact::CORRELATION => header.correlation = Some(Uuid::from_slice(value).map_err(|_| WRONG_SIZE)?),
        fact::SCHEMA => header.schema = Some(u64::from_le_bytes(value.try_into().map_err(|_| WRONG_SIZE)?)),
        fact::TRACEPARENT => header.traceparent = Some(text(value)?.into()),
        fact::STREAM => header.stream = Some(Box::new(stream_mark(value).ok_or(WRONG_SIZE)?)),
        fact::KEY => header.durable.get_or_insert_default().key = Some(text(value)?),
        fact::DELIVERY => {
            header.durable.get_or_insert_default().delivery = Some(delivery_mark(value).ok_or(WRONG_SIZE)?);
        }
        fact::USER => {
            let (name_bytes, rest) = value.split_first_chunk::<2>().ok_or(WRONG_SIZE)?;
            let (name, value) =
                rest.split_at_checked(u16::from_le_bytes(*name_bytes).into()).ok_or(WRONG_SIZE)?;
            header.user.push((text(name)?, text(value)?));
        }
        _unknown => {}
    }
    Ok(())
}

/// `stream 16 bytes | sequence u64 | previous u64 | taken u64 | again u8`; later versions may append.
fn stream_mark(value: &[u8]) -> Option<StreamMark> {
    let (stream, rest) = value.split_first_chunk::<16>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (previous, rest) = rest.split_first_chunk::<8>()?;
    let (taken, rest) = rest.split_first_chunk::<8>()?;
    Some(StreamMark {
        stream: Uuid::from_bytes(*stream),
        sequence: u64::from_le_bytes(*sequence),
        previous: u64::from_le_bytes(*previous),
        taken: u64::from_le_bytes(*taken),
        again: *rest.first()? != 0,
    })
}

fn delivery_value(mark: &DeliveryMark) -> Vec<u8> {
    let DeliveryMark { number, attempt, accepted_ms, origin } = mark;
    let origin = origin.as_str().as_bytes();
    [
        &number.to_le_bytes()[..],
        &attempt.to_le_bytes(),
        &accepted_ms.to_le_bytes(),
        &[origin.len() as u8],
        origin,
    ]
    .concat()
}

/// `number u64 | attempt u32 | accepted u64 | origin text8`; later versions may append.
fn delivery_mark(value: &[u8]) -> Option<DeliveryMark> {
    let (number, rest) = value.split_first_chunk::<8>()?;
    let (attempt, rest) = rest.split_first_chunk::<4>()?;
    let (accepted_ms, rest) = rest.split_first_chunk::<8>()?;
    let (origin_bytes, rest) = rest.split_first()?;
    let origin = std::str::from_utf8(rest.get(..usize::from(*origin_bytes))?).ok()?;
    Some(DeliveryMark {
        number: u64::from_le_bytes(*number),
        attempt: u32::from_le_bytes(*attempt),
        accepted_ms: u64::from_le_bytes(*accepted_ms),
        origin: origin.parse().ok()?,
    })
}

/// A kept header as an attempt carries it: every fact that the publisher gave, also those this version does not know, the
/// message's id, and the outbox's word about the attempt. What the publisher itself says about deliveries, or hides behind
/// its last fact, is left out.
pub(crate) fn delivery_header(kept: &[u8], id: Uuid, mark: &DeliveryMark) -> Vec<u8> {
    let (fixed, mut rest) =
        kept.split_at_checked(PLAIN_HEADER_BYTES).unwrap_or((&[0; PLAIN_HEADER_BYTES], &[]));
    let value = delivery_value(mark);
    let mut bytes = Vec::with_capacity(kept.len() + PLAIN_HEADER_BYTES + 10 + value.len());
    bytes.extend_from_slice(id.as_bytes());
    bytes.extend_from_slice(&fixed[16..24]);
    bytes.extend_from_slice(&[0; 8]);
    let mut count = 1u64;
    let given = fixed.last_chunk().map_or(0, |count| u64::from_le_bytes(*count));
    for _ in 0..given {
        // A header that was taken has been read as a whole, so these are there.
        let Some((tag, after_tag)) = rest.split_first_chunk::<2>() else { break };
        let Some((length, _)) = after_tag.split_first_chunk::<8>() else { break };
        let bytes_in_all = u64::from_le_bytes(*length).saturating_add(10);
        let Some((fact, behind)) = rest.split_at_checked(bytes_in_all as usize) else { break };
        rest = behind;
        if u16::from_le_bytes(*tag) != fact::DELIVERY {
            bytes.extend_from_slice(fact);
            count += 1;
        }
    }
    bytes[24..32].copy_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&fact::DELIVERY.to_le_bytes());
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&value);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::envelope::DurableFacts;

    fn delivery() -> DeliveryMark {
        DeliveryMark { number: 6, attempt: 2, accepted_ms: 8, origin: "alice".parse().unwrap() }
    }

    fn full_header() -> Header {
        Header {
            id: Uuid::from_bytes([7; 16]),
            published_at_ns: 0x0102_0304_0506_0708,
            content_type: ContentType::Json,
            reply_to: Some("a/b".parse().unwrap()),
            correlation: Some(Uuid::from_bytes([9; 16])),
            schema: Some(42),
            traceparent: Some("00-aa-bb-01".into()),
            stream: Some(Box::new(StreamMark {
                stream: Uuid::from_bytes([3; 16]),
                sequence: 5,
                previous: 4,
                taken: 2,
                again: true,
            })),
            durable: Some(Box::new(DurableFacts {
                key: Some("order 7".to_owned()),
                delivery: Some(delivery()),
            })),
            user: vec![("k".to_owned(), "v".to_owned()), ("k".to_owned(), String::new())],
        }
    }

    #[test]
    fn a_header_has_the_bytes_that_bincode_gives_it() {
        let mut ours = Vec::new();
        put_header(&full_header(), &mut ours);
        let facts: Vec<(u16, Vec<u8>)> = vec![
            (1, b"application/json".to_vec()),
            (2, b"a/b".to_vec()),
            (3, vec![9; 16]),
            (4, 42u64.to_le_bytes().to_vec()),
            (5, b"00-aa-bb-01".to_vec()),
            (7, [&[3; 16][..], &5u64.to_le_bytes(), &4u64.to_le_bytes(), &2u64.to_le_bytes(), &[1]].concat()),
            (8, b"order 7".to_vec()),
            (9, [&6u64.to_le_bytes()[..], &2u32.to_le_bytes(), &8u64.to_le_bytes(), b"\x05alice"].concat()),
            (6, b"\x01\0kv".to_vec()),
            (6, b"\x01\0k".to_vec()),
        ];
        let theirs =
            bincode::encode_to_vec(([7u8; 16], 0x0102_0304_0506_0708u64, facts), bincode::config::legacy())
                .unwrap();
        assert_eq!(ours, theirs);
        assert_eq!(header(&ours).unwrap(), full_header());
    }

    #[test]
    fn a_header_cut_anywhere_is_an_error_and_never_a_panic() {
        let mut bytes = Vec::new();
        put_header(&full_header(), &mut bytes);
        for length in 1..bytes.len() {
            assert!(header(&bytes[..length]).is_err(), "cut at {length}");
        }
        assert_eq!(header(&[]).unwrap(), Header::absent());
    }

    #[test]
    fn a_fact_of_a_later_version_is_skipped_wherever_it_stands() {
        let mut known = Vec::new();
        put_header(&full_header(), &mut known);
        let (fixed, facts) = known.split_at(PLAIN_HEADER_BYTES);
        let later = [&999u16.to_le_bytes()[..], &3u64.to_le_bytes(), b"new"].concat();
        let count = 1 + u64::from_le_bytes(*fixed[24..].first_chunk().unwrap());
        for bytes in [[facts, &later].concat(), [&later, facts].concat()] {
            let bytes = [&fixed[..24], &count.to_le_bytes(), &bytes].concat();
            assert_eq!(header(&bytes).unwrap(), full_header());
        }
    }

    #[test]
    fn an_attempt_carries_what_the_publisher_said_and_the_outboxs_word_about_itself() {
        let mut kept = Vec::new();
        put_header(&full_header(), &mut kept);
        let (id, mark) = (Uuid::from_bytes([5; 16]), DeliveryMark { attempt: 3, ..delivery() });
        let marked = || DurableFacts { key: None, delivery: Some(mark.clone()) };
        let expected = Header { id, ..full_header() };
        let expected = Header {
            durable: Some(Box::new(DurableFacts { key: Some("order 7".to_owned()), ..marked() })),
            ..expected
        };
        assert_eq!(header(&delivery_header(&kept, id, &mark)).unwrap(), expected);
        // A mark hidden behind the last fact that is counted.
        let forged = DeliveryMark { origin: "mallory".parse().unwrap(), ..delivery() };
        let with_mark = delivery_header(&[], id, &forged);
        let with_mark_bytes = with_mark.len();
        let mut hidden = with_mark.clone();
        hidden[24..32].fill(0);
        let of_nothing = Header { id, durable: Some(Box::new(marked())), ..Header::absent() };
        for kept in [with_mark, hidden] {
            let bytes = delivery_header(&kept, id, &mark);
            assert_eq!(header(&bytes).unwrap(), of_nothing);
            assert_eq!(
                bytes.len(),
                with_mark_bytes - "mallory".len() + "alice".len(),
                "one mark, and it is ours"
            );
        }
        let of_nothing = Header { id, durable: Some(Box::new(marked())), ..Header::absent() };
        assert_eq!(header(&delivery_header(&[], id, &mark)).unwrap(), of_nothing);
    }

    #[test]
    fn a_payload_has_the_bytes_that_bincode_gives_it() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        enum Shape {
            Unit,
            Pair(u8, String),
            Named { flag: bool, list: Vec<Option<i64>> },
        }
        for value in [
            Shape::Unit,
            Shape::Pair(3, "text".into()),
            Shape::Named { flag: true, list: vec![None, Some(-1)] },
        ] {
            let ours = to_bytes(&value).unwrap();
            let theirs = bincode::serde::encode_to_vec(&value, bincode::config::legacy()).unwrap();
            assert_eq!(ours, theirs);
            assert_eq!(from_bytes::<Shape>(&ours).unwrap(), value);
        }
    }

    #[test]
    fn a_lying_length_is_refused_without_allocating_it() {
        for length in [u64::MAX, 1 << 40, 33] {
            let mut hostile = length.to_le_bytes().to_vec();
            hostile.extend_from_slice(&[0; 24]);
            assert!(from_bytes::<Vec<u8>>(&hostile).is_err());
            assert!(from_bytes::<String>(&hostile).is_err());
        }
    }

    proptest! {
        #[test]
        fn hostile_header_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = header(&bytes);
        }
    }
}
