//! The properties that each side sends once, inside INITIATE and READY.

use super::socket_type::SocketType;

/// The property that makes a session native; its value is the major version of the record protocol.
/// RFC 37 leaves names beginning with `X-` to applications.
pub const X_INTERLOCK: &str = "X-Interlock";

const SOCKET_TYPE: &str = "Socket-Type";
const IDENTITY: &str = "Identity";
/// More properties than any known client sends (libzmq: two, and those of `ZMQ_METADATA`). A peer
/// that sends more is refused.
const PROPERTIES_MAX: usize = 32;

/// Why metadata are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// More bytes than allowed.
    #[error("the metadata have {bytes} bytes; the limit is {limit} bytes")]
    TooLong {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More properties than allowed.
    #[error("the metadata have more than {PROPERTIES_MAX} properties")]
    TooMany,
    /// A property that ends before its announced size.
    #[error("the metadata end in the middle of the property that begins at byte {at}")]
    Truncated {
        /// Where the property begins.
        at: usize,
    },
    /// A name that is empty, longer than 255 bytes, or has other characters than RFC 23 allows.
    #[error("the metadata name `{name}` is not valid; use 1 to 255 letters, digits and `-_.+`")]
    Name {
        /// The name, unprintable bytes escaped.
        name: String,
    },
    /// One name twice.
    #[error("the metadata name `{name}` stands twice")]
    Duplicate {
        /// The name.
        name: String,
    },
}

/// The metadata of one side of a connection.
///
/// - Names are unique without regard to case, 1 to 255 of RFC 23's characters; order is kept.
/// - At most 32 properties; a reader also bounds the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    properties: Vec<(String, Vec<u8>)>,
}

impl Metadata {
    /// The least that either side must send.
    pub fn new(socket_type: &SocketType) -> Self {
        let value = socket_type.name().as_bytes().to_vec();
        Self { properties: vec![(SOCKET_TYPE.to_owned(), value)] }
    }

    /// Adds a property.
    ///
    /// # Errors
    /// [`MetadataError`]: its name is empty, too long, has an odd character or is there already, or the limit is passed.
    pub fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Result<Self, MetadataError> {
        self.insert(name.as_bytes(), value.into())?;
        Ok(self)
    }

    /// The value of a property; case of the name does not matter.
    /// `None` if it is not there.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All properties in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.properties.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The socket type, if one was sent. Bytes that are not UTF-8 are replaced.
    pub fn socket_type(&self) -> Option<SocketType> {
        self.get(SOCKET_TYPE).map(|value| SocketType::from_name(&String::from_utf8_lossy(value)))
    }

    /// The routing id that a REQ, DEALER or ROUTER may send; `None` also if it is empty.
    pub fn identity(&self) -> Option<&[u8]> {
        self.get(IDENTITY).filter(|value| !value.is_empty())
    }

    /// Reads the metadata at the end of INITIATE or READY.
    pub(super) fn parse(bytes: &[u8], bytes_max: usize) -> Result<Self, MetadataError> {
        if bytes.len() > bytes_max {
            return Err(MetadataError::TooLong { bytes: bytes.len(), limit: bytes_max });
        }
        let mut metadata = Self::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (name, value, after) = split_property(rest).ok_or(MetadataError::Truncated { at })?;
            metadata.insert(name, value.to_vec())?;
            rest = after;
        }
        Ok(metadata)
    }

    /// Appends the metadata as they travel.
    pub(super) fn encode_onto(&self, output: &mut Vec<u8>) {
        for (name, value) in &self.properties {
            let name_bytes = u8::try_from(name.len()).expect("insert checked the name's length");
            let value_bytes = u32::try_from(value.len()).expect("insert checked the value's length");
            output.push(name_bytes);
            output.extend_from_slice(name.as_bytes());
            output.extend_from_slice(&value_bytes.to_be_bytes());
            output.extend_from_slice(value);
        }
    }

    fn insert(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), MetadataError> {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(byte);
        if !(1..=255).contains(&name.len()) || !name.iter().all(allowed) {
            return Err(MetadataError::Name { name: name.escape_ascii().to_string() });
        }
        let name = name.escape_ascii().to_string();
        if self.properties.len() == PROPERTIES_MAX {
            return Err(MetadataError::TooMany);
        }
        let value_bytes_max = i32::MAX as usize;
        if value.len() > value_bytes_max {
            return Err(MetadataError::TooLong { bytes: value.len(), limit: value_bytes_max });
        }
        if self.get(&name).is_some() {
            return Err(MetadataError::Duplicate { name });
        }
        self.properties.push((name, value));
        Ok(())
    }
}

/// Name, value, and what follows them.
fn split_property(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name_bytes, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*name_bytes))?;
    let (value_bytes, rest) = rest.split_first_chunk::<4>()?;
    let value_bytes = usize::try_from(u32::from_be_bytes(*value_bytes)).ok()?;
    let (value, rest) = rest.split_at_checked(value_bytes)?;
    Some((name, value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(metadata: &Metadata) -> Vec<u8> {
        let mut bytes = Vec::new();
        metadata.encode_onto(&mut bytes);
        bytes
    }

    #[test]
    fn metadata_read_back_and_names_ignore_case() {
        let metadata = Metadata::new(&SocketType::Dealer)
            .with("Identity", "me")
            .and_then(|metadata| metadata.with(X_INTERLOCK, "1"))
            .unwrap();
        let read = Metadata::parse(&encoded(&metadata), 1000).unwrap();
        assert_eq!(read, metadata);
        assert_eq!(read.socket_type(), Some(SocketType::Dealer));
        assert_eq!(read.identity(), Some(&b"me"[..]));
        assert_eq!(read.get("x-interlock"), Some(&b"1"[..]));
        assert_eq!(read.get("absent"), None);
        assert_eq!(encoded(&Metadata::new(&SocketType::Pub)), b"\x0bSocket-Type\0\0\0\x03PUB");
    }

    #[test]
    fn metadata_cut_short_anywhere_are_refused() {
        let bytes = encoded(&Metadata::new(&SocketType::Req).with("Identity", "").unwrap());
        let second = b"\x0bSocket-Type\0\0\0\x03REQ".len();
        for end in 1..bytes.len() {
            let expected = MetadataError::Truncated { at: if end > second { second } else { 0 } };
            if end != second {
                assert_eq!(Metadata::parse(&bytes[..end], 1000), Err(expected), "at {end}");
            }
        }
    }

    #[test]
    fn metadata_are_bounded_in_bytes_and_count() {
        let bytes = encoded(&Metadata::new(&SocketType::Req));
        let limit = bytes.len() - 1;
        assert_eq!(Metadata::parse(&bytes, limit), Err(MetadataError::TooLong { bytes: limit + 1, limit }));
        let many: Vec<u8> = (0..33u8).flat_map(|at| [1, b'0' + at, 0, 0, 0, 0]).collect();
        let letters: Vec<u8> = (0..33).flat_map(|at| format!("\x03a{at:02}\0\0\0\0").into_bytes()).collect();
        assert!(Metadata::parse(&many, 1000).is_err());
        assert_eq!(Metadata::parse(&letters, 1000), Err(MetadataError::TooMany));
        assert!(Metadata::parse(b"\x01a\xff\xff\xff\xff", 1000).is_err());
    }

    #[test]
    fn empty_odd_and_repeated_names_are_refused() {
        let name = |name: &str| MetadataError::Name { name: name.to_owned() };
        assert_eq!(Metadata::parse(b"\0\0\0\0\0", 99), Err(name("")));
        assert_eq!(Metadata::parse(b"\x02a\n\0\0\0\0", 99), Err(name("a\\n")));
        let twice = MetadataError::Duplicate { name: "A".to_owned() };
        assert_eq!(Metadata::parse(b"\x01a\0\0\0\0\x01A\0\0\0\0", 99), Err(twice));
        assert!(Metadata::default().with(&"n".repeat(256), "").is_err());
    }
}
