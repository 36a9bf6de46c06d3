//! Schemas: what the fields of a payload in bincode's format are, so that the tool can show it
//! without knowing the type. Written as JSON:
//!
//! | JSON | the type | its bytes |
//! |---|---|---|
//! | `"bool"` | `bool` | one byte, 0 or 1 |
//! | `"u8"` ... `"u128"`, `"i8"` ... `"i128"`, `"f32"`, `"f64"` | numbers | little-endian |
//! | `"char"` | `char` | UTF-8, without a length |
//! | `"string"`, `"bytes"` | text, bytes | `u64` length, bytes |
//! | `"uuid"` | `uuid::Uuid` | `u64` 16, 16 bytes |
//! | `"unit"` | `()` | none |
//! | `{"option": T}` | `Option` | one byte 0, or 1 and T |
//! | `{"list": T}` | `Vec`, sets | `u64` count, each T |
//! | `{"map": [K, V]}` | maps | `u64` count, each K and V |
//! | `{"tuple": [T, ...]}` | tuples, tuple structs, arrays | each T |
//! | `{"struct": [["name", T], ...]}` | structs | each T in order |
//! | `{"enum": [["Name", T], ...]}` | enums, in order of declaration | `u32` index, T |
//!
//! A newtype is written as what it wraps. The decoder gives the JSON that serde would give for the
//! same value (128-bit numbers, floats that JSON lacks and bytes become texts).

use serde_json::{Map, Value, json};

use crate::native::Record;

/// How deep types may be nested. Schemas come from other peers.
const DEPTH_MAX: usize = 32;
/// Values one payload may decode to; lists of nothing would otherwise take no bytes.
const VALUES_MAX: usize = 100_000;
/// Bytes of a schema as JSON; the broker takes no larger one.
const SCHEMA_BYTES_MAX: usize = 64 << 10;

/// Why a text is no schema, or bytes do not fit one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// The text is no JSON, or not of the form above.
    #[error("schema `{name}` is not valid at `{at}`: {problem}")]
    Invalid {
        /// The schema's name.
        name: String,
        /// The offending part, shortened.
        at: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The bytes end before the value does.
    #[error("payload ends at byte {at}, in the middle of a `{expected}`")]
    Short {
        /// How many bytes there are.
        at: usize,
        /// What should have come.
        expected: &'static str,
    },
    /// A byte that the type does not allow.
    #[error("payload has an impossible {expected} before byte {at}")]
    Impossible {
        /// Where the value ends.
        at: usize,
        /// What should have come.
        expected: &'static str,
    },
    /// More values than the tool shows.
    #[error("payload holds more than {VALUES_MAX} values")]
    TooMany,
    /// Bytes behind the value.
    #[error("payload goes on for {bytes} bytes behind its value")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// A named type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    name: String,
    root: Type,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Type {
    Plain(Plain),
    Option(Box<Type>),
    List(Box<Type>),
    Map(Box<(Type, Type)>),
    Tuple(Vec<Type>),
    Struct(Vec<(String, Type)>),
    Enum(Vec<(String, Type)>),
}

macro_rules! plain {
    ($($variant:ident $name:literal),+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Plain { $($variant),+ }

        impl Plain {
            fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}
plain!(
    Unit "unit", Bool "bool", Char "char", String "string", Bytes "bytes", Uuid "uuid",
    U8 "u8", U16 "u16", U32 "u32", U64 "u64", U128 "u128",
    I8 "i8", I16 "i16", I32 "i32", I64 "i64", I128 "i128", F32 "f32", F64 "f64"
);

impl Schema {
    /// Reads a schema from its JSON.
    ///
    /// # Errors
    /// [`SchemaError::Invalid`].
    pub fn parse(name: &str, text: &str) -> Result<Self, SchemaError> {
        let invalid = |at: String, problem| SchemaError::Invalid { name: name.to_owned(), at, problem };
        if name.is_empty() || name.len() > 255 {
            return Err(invalid(shortened(name), "a name has 1 to 255 bytes"));
        }
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(invalid(shortened(text), "it is longer than 64 KiB"));
        }
        let value: Value =
            serde_json::from_str(text).map_err(|_| invalid(shortened(text), "it is not JSON"))?;
        Self::from_value(name, &value)
    }

    /// Reads a schema from JSON that was read already.
    ///
    /// # Errors
    /// [`SchemaError::Invalid`].
    pub fn from_value(name: &str, value: &Value) -> Result<Self, SchemaError> {
        let root = Type::parse(value, DEPTH_MAX).map_err(|(at, problem)| SchemaError::Invalid {
            name: name.to_owned(),
            at: shortened(&at.to_string()),
            problem,
        })?;
        Ok(Self { name: name.to_owned(), text: root.to_value().to_string(), root })
    }

    /// The name of the type.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its canonical JSON.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Stands in headers for the schema: FNV-1a, 64 bits, of name, line feed and canonical JSON.
    pub fn fingerprint(&self) -> u64 {
        let bytes = self.name.bytes().chain([b'\n']).chain(self.text.bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// The record that registers it.
    pub(crate) fn record(&self) -> Record {
        Record::Schema {
            fingerprint: self.fingerprint(),
            name: self.name.clone(),
            format: "fields".to_owned(),
            body: self.text.clone().into(),
        }
    }

    /// Turns a payload into JSON. Safe with any bytes: bounded in depth, count and memory.
    ///
    /// # Errors
    /// [`SchemaError`] if the bytes do not fit.
    pub fn decode(&self, bytes: &[u8]) -> Result<Value, SchemaError> {
        let mut reader = Reader { bytes, at: 0, values: 0 };
        let value = reader.value(&self.root)?;
        match bytes.len() - reader.at {
            0 => Ok(value),
            bytes => Err(SchemaError::Trailing { bytes }),
        }
    }
}

fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(60)].to_owned()
}

impl Type {
    fn parse(value: &Value, depth: usize) -> Result<Self, (&Value, &'static str)> {
        const FORM: &str =
            "expected a type name or one of option, list, map, tuple, struct, enum with its content";
        if depth == 0 {
            return Err((value, "it is nested more than 32 deep"));
        }
        if let Value::String(name) = value {
            return Plain::from_name(name).map(Self::Plain).ok_or((value, "there is no such plain type"));
        }
        let (kind, content) = match value {
            Value::Object(object) if object.len() == 1 => object.iter().next().ok_or((value, FORM))?,
            _ => return Err((value, FORM)),
        };
        let below = |value| Self::parse(value, depth - 1);
        let items = || content.as_array().ok_or((content, "expected a list"));
        Ok(match kind.as_str() {
            "option" => Self::Option(Box::new(below(content)?)),
            "list" => Self::List(Box::new(below(content)?)),
            "map" => match &items()?[..] {
                [key, value] => Self::Map(Box::new((below(key)?, below(value)?))),
                _ => return Err((content, "expected the types of key and value")),
            },
            "tuple" => Self::Tuple(items()?.iter().map(below).collect::<Result<_, _>>()?),
            "struct" | "enum" => {
                let named = items()?.iter().map(|item| match item.as_array().map(Vec::as_slice) {
                    Some([Value::String(name), of]) => Ok((name.clone(), below(of)?)),
                    _ => Err((item, "expected [\"name\", type]")),
                });
                let named = named.collect::<Result<_, _>>()?;
                if kind == "struct" { Self::Struct(named) } else { Self::Enum(named) }
            }
            _ => return Err((value, FORM)),
        })
    }

    fn to_value(&self) -> Value {
        let named = |items: &[(String, Type)]| -> Vec<Value> {
            items.iter().map(|(name, of)| json!([name, of.to_value()])).collect()
        };
        match self {
            Self::Plain(plain) => json!(plain.name()),
            Self::Option(of) => json!({ "option": of.to_value() }),
            Self::List(of) => json!({ "list": of.to_value() }),
            Self::Map(of) => json!({ "map": [of.0.to_value(), of.1.to_value()] }),
            Self::Tuple(of) => json!({ "tuple": of.iter().map(Self::to_value).collect::<Vec<_>>() }),
            Self::Struct(fields) => json!({ "struct": named(fields) }),
            Self::Enum(variants) => json!({ "enum": named(variants) }),
        }
    }
}

/// What is left of a payload.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    values: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, expected: &'static str) -> Result<&'a [u8], SchemaError> {
        let taken = self.bytes[self.at..].get(..length);
        let taken = taken.ok_or(SchemaError::Short { at: self.bytes.len(), expected })?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], SchemaError> {
        let taken = self.take(N, expected)?;
        taken.try_into().map_err(|_| SchemaError::Short { at: self.at, expected })
    }

    fn impossible(&self, expected: &'static str) -> SchemaError {
        SchemaError::Impossible { at: self.at, expected }
    }

    fn length(&mut self) -> Result<usize, SchemaError> {
        let length = u64::from_le_bytes(self.array("length")?);
        usize::try_from(length).map_err(|_| self.impossible("length"))
    }

    /// The depth is that of the type, which is bounded.
    fn value(&mut self, of: &Type) -> Result<Value, SchemaError> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(SchemaError::TooMany);
        }
        Ok(match of {
            Type::Plain(plain) => self.plain(*plain)?,
            Type::Option(of) => match self.array::<1>("option")? {
                [0] => Value::Null,
                [1] => self.value(of)?,
                _ => return Err(self.impossible("option")),
            },
            // Not collected with a capacity: the count is not to be believed.
            Type::List(of) => {
                let count = self.length()?;
                Value::Array((0..count).map(|_| self.value(of)).collect::<Result<_, _>>()?)
            }
            Type::Map(of) => {
                let count = self.length()?;
                let mut map = Map::new();
                for _ in 0..count {
                    let key = match self.value(&of.0)? {
                        Value::String(key) => key,
                        other => other.to_string(),
                    };
                    map.insert(key, self.value(&of.1)?);
                }
                Value::Object(map)
            }
            Type::Tuple(of) => Value::Array(of.iter().map(|of| self.value(of)).collect::<Result<_, _>>()?),
            Type::Struct(fields) => {
                let fields = fields.iter().map(|(name, of)| Ok((name.clone(), self.value(of)?)));
                Value::Object(fields.collect::<Result<_, SchemaError>>()?)
            }
            Type::Enum(variants) => {
                let index = u32::from_le_bytes(self.array("enum")?);
                let variant = usize::try_from(index).ok().and_then(|index| variants.get(index));
                match variant.ok_or(self.impossible("enum"))? {
                    (name, Type::Plain(Plain::Unit)) => json!(name),
                    (name, of) => json!({ name: self.value(of)? }),
                }
            }
        })
    }

    fn plain(&mut self, plain: Plain) -> Result<Value, SchemaError> {
        let name = plain.name();
        macro_rules! number {
            ($type:ty) => {
                <$type>::from_le_bytes(self.array(name)?)
            };
        }
        Ok(match plain {
            Plain::Unit => Value::Null,
            Plain::Bool => match self.array::<1>(name)? {
                [0] => json!(false),
                [1] => json!(true),
                _ => return Err(self.impossible(name)),
            },
            Plain::Char => self.char()?,
            Plain::String => {
                let length = self.length()?;
                let text = std::str::from_utf8(self.take(length, name)?);
                json!(text.map_err(|_| self.impossible(name))?)
            }
            Plain::Bytes => {
                let length = self.length()?;
                json!(hex(self.take(length, name)?))
            }
            Plain::Uuid => match self.length()? {
                16 => json!(uuid::Uuid::from_bytes(self.array(name)?).to_string()),
                _ => return Err(self.impossible(name)),
            },
            Plain::U8 => json!(number!(u8)),
            Plain::U16 => json!(number!(u16)),
            Plain::U32 => json!(number!(u32)),
            Plain::U64 => json!(number!(u64)),
            Plain::U128 => json!(number!(u128).to_string()),
            Plain::I8 => json!(number!(i8)),
            Plain::I16 => json!(number!(i16)),
            Plain::I32 => json!(number!(i32)),
            Plain::I64 => json!(number!(i64)),
            Plain::I128 => json!(number!(i128).to_string()),
            Plain::F32 => float(f64::from(number!(f32))),
            Plain::F64 => float(number!(f64)),
        })
    }

    fn char(&mut self) -> Result<Value, SchemaError> {
        let [first] = self.array("char")?;
        let rest = match first {
            0..0x80 => 0,
            0xc0..0xe0 => 1,
            0xe0..0xf0 => 2,
            0xf0..0xf8 => 3,
            _ => return Err(self.impossible("char")),
        };
        let start = self.at - 1;
        self.take(rest, "char")?;
        let text = std::str::from_utf8(&self.bytes[start..self.at]);
        Ok(json!(text.map_err(|_| self.impossible("char"))?))
    }
}

/// JSON has no infinities and no NaN.
fn float(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| json!(value.to_string()), Value::Number)
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;
    use crate::codec;

    #[derive(Serialize)]
    enum Shape {
        Nothing,
        Newtype(u16),
        Pair(i8, char),
        Named { inner: Option<Box<Inner>> },
    }

    #[derive(Serialize)]
    struct Inner {
        text: String,
        id: uuid::Uuid,
        flags: (bool, f64),
        numbers: Vec<i64>,
        names: BTreeMap<String, u32>,
    }

    fn schema() -> Schema {
        let inner = r#"{"struct":[["text","string"],["id","uuid"],["flags",{"tuple":["bool","f64"]}],
            ["numbers",{"list":"i64"}],["names",{"map":["string","u32"]}]]}"#;
        let text = format!(
            r#"{{"list":{{"enum":[["Nothing","unit"],["Newtype","u16"],["Pair",{{"tuple":["i8","char"]}}],
            ["Named",{{"struct":[["inner",{{"option":{inner}}}]]}}]]}}}}"#
        );
        Schema::parse("Shapes", &text).unwrap()
    }

    fn shapes() -> Vec<Shape> {
        let inner = Inner {
            text: "h\u{e4}".to_owned(),
            id: uuid::Uuid::from_bytes([7; 16]),
            flags: (true, 1.5),
            numbers: vec![-1, i64::MAX],
            names: BTreeMap::from([("one".to_owned(), 1), ("two".to_owned(), 2)]),
        };
        vec![
            Shape::Nothing,
            Shape::Newtype(9),
            Shape::Pair(-3, '\u{20ac}'),
            Shape::Named { inner: None },
            Shape::Named { inner: Some(Box::new(inner)) },
        ]
    }

    #[test]
    fn a_payload_decodes_to_the_json_that_serde_writes() {
        let bytes = codec::to_bytes(&shapes()).unwrap();
        assert_eq!(schema().decode(&bytes).unwrap(), serde_json::to_value(shapes()).unwrap());
    }

    #[test]
    fn a_payload_cut_anywhere_or_with_more_behind_it_is_an_error() {
        let bytes = codec::to_bytes(&shapes()).unwrap();
        for length in 0..bytes.len() {
            assert!(schema().decode(&bytes[..length]).is_err(), "cut at {length}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(schema().decode(&longer), Err(SchemaError::Trailing { bytes: 1 }));
    }

    #[test]
    fn a_list_of_nothing_and_a_lying_length_end_in_an_error_soon() {
        let endless = u64::MAX.to_le_bytes();
        let units = Schema::parse("Units", r#"{"list":"unit"}"#).unwrap();
        assert_eq!(units.decode(&endless), Err(SchemaError::TooMany));
        let text = Schema::parse("Text", r#""string""#).unwrap();
        assert!(matches!(text.decode(&endless), Err(SchemaError::Short { .. })));
    }

    #[test]
    fn a_text_that_is_no_schema_is_refused_with_the_place() {
        for text in ["", "7", r#""text""#, r#"{"list":"u9"}"#, r#"{"struct":[["a"]]}"#, r#"{"a":1,"b":2}"#] {
            assert!(matches!(Schema::parse("T", text), Err(SchemaError::Invalid { .. })), "{text}");
        }
        let deep = format!("{}\"u8\"{}", r#"{"list":"#.repeat(40), "}".repeat(40));
        assert!(Schema::parse("T", &deep).unwrap_err().to_string().contains("32 deep"));
    }

    #[test]
    fn the_fingerprint_depends_on_name_and_fields_and_not_on_spaces() {
        let print = |name, text| Schema::parse(name, text).unwrap().fingerprint();
        let one = print("T", r#"{"list":"u8"}"#);
        assert_eq!(one, print("T", r#" { "list" : "u8" } "#));
        assert_ne!(one, print("U", r#"{"list":"u8"}"#));
        assert_ne!(one, print("T", r#"{"list":"u16"}"#));
        assert_eq!(
            one, 6_574_627_669_107_731_020,
            "fingerprints stand in stored headers and must not change"
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = schema().decode(&bytes);
        }
    }
}
