//! The only reader of foreign JSON.
//!
//! [`Document::read`] takes bytes from outside and yields one strict JSON object, or a [`Fault`]: a key that stands
//! twice (after unescaping), a key JavaScript treats specially, nesting beyond the limit, a byte order mark, anything
//! after the value, invalid UTF-8, lone surrogates, numbers beyond a double. What it accepts, every other JSON parser
//! reads the same way. [`canonical`] writes RFC 8785, the form that is forwarded. [`pointer()`] writes RFC 6901.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How large a document's structure may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How deep values may nest.
    pub depth: usize,
    /// Items of one array, and members of one object.
    pub items: usize,
}

impl Bounds {
    /// Enough for every body and answer of the guarded API.
    pub const DEFAULT: Self = Self { depth: 32, items: 4096 };
}

/// Keys that some JavaScript readers treat as more than data.
const FORBIDDEN_KEYS: [&str; 3] = ["__proto__", "constructor", "prototype"];

/// Why bytes are not one strict JSON document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not JSON, or not an object; says what and where. Never quotes the input.
    Malformed(String),
    /// A key stands twice in the object at this pointer.
    DuplicateKey(String),
    /// `__proto__`, `constructor` or `prototype` at this pointer.
    ForbiddenKey(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => f.write_str(what),
            Self::DuplicateKey(at) => write!(f, "a key stands twice at {at}"),
            Self::ForbiddenKey(at) => write!(f, "a forbidden key at {at}"),
        }
    }
}

/// One strict JSON object.
#[derive(Clone, Debug, PartialEq)]
pub struct Document(Map<String, Value>);

impl Document {
    /// Reads exactly one object.
    pub fn read(bytes: &[u8]) -> Result<Self, Fault> {
        Self::read_within(bytes, Bounds::DEFAULT)
    }

    /// The same within bounds of one's own.
    pub fn read_within(bytes: &[u8], bounds: Bounds) -> Result<Self, Fault> {
        match read(bytes, bounds)? {
            Value::Object(members) => Ok(Self(members)),
            other => Err(Fault::Malformed(format!("expected a JSON object, found {}", type_name(&other)))),
        }
    }

    /// The members.
    pub fn members(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The document as a value.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// A document of a value that is known to be strict, such as a patched one; `None` if it is no object.
    pub fn of(value: Value) -> Option<Self> {
        match value {
            Value::Object(members) => Some(Self(members)),
            _ => None,
        }
    }
}

/// Reads exactly one strict value of any type.
pub fn value(bytes: &[u8]) -> Result<Value, Fault> {
    read(bytes, Bounds::DEFAULT)
}

fn read(bytes: &[u8], bounds: Bounds) -> Result<Value, Fault> {
    let reading = Reading { bounds, path: RefCell::new(Vec::new()), fault: Cell::new(None) };
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let read = Strict(&reading).deserialize(&mut source).and_then(|value| source.end().map(|()| value));
    read.map_err(|error| reading.fault.take().unwrap_or_else(|| Fault::Malformed(describe(&error))))
}

/// Reads back what this program wrote itself.
#[expect(clippy::disallowed_methods, reason = "our own bytes, digested or written by us")]
pub fn own<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// RFC 8785 bytes: what goes out on a governed route.
pub fn canonical(value: &Value) -> Vec<u8> {
    // Fails only for values serde_json::Value cannot hold (non-finite numbers).
    serde_json_canonicalizer::to_vec(value).unwrap_or_default()
}

/// An RFC 6901 pointer from its parts.
pub fn pointer<S: AsRef<str>>(parts: &[S]) -> String {
    parts.iter().fold(String::new(), |mut text, part| {
        text.push('/');
        text.push_str(&part.as_ref().replace('~', "~0").replace('/', "~1"));
        text
    })
}

/// `a string`, `an array`, …
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// serde_json's messages may quote input after `invalid type:`; ours only name the class and the place.
fn describe(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "the JSON ends too early",
        serde_json::error::Category::Data => "a value that cannot be read",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "not valid JSON",
    };
    format!("{what} at line {} column {}", error.line(), error.column())
}

/// Where the reader is, and the first fault it met.
struct Reading {
    bounds: Bounds,
    path: RefCell<Vec<String>>,
    fault: Cell<Option<Fault>>,
}

impl Reading {
    fn stop<E: serde::de::Error>(&self, fault: Fault) -> E {
        self.fault.set(Some(fault));
        E::custom("stopped")
    }

    fn count<E: serde::de::Error>(&self, items: usize) -> Result<(), E> {
        let at_most = self.bounds.items;
        if items <= at_most {
            return Ok(());
        }
        let what = format!("an array or object of more than {at_most} entries (`limits.json_items`)");
        Err(self.stop(Fault::Malformed(what)))
    }

    fn pointer_to(&self, key: &str) -> String {
        let path = self.path.borrow();
        pointer(&path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>())
    }

    fn below<T>(&self, part: String, read: impl FnOnce() -> T) -> T {
        self.path.borrow_mut().push(part);
        let result = read();
        self.path.borrow_mut().pop();
        result
    }
}

#[derive(Clone, Copy)]
struct Strict<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        let (depth, at_most) = (self.0.path.borrow().len(), self.0.bounds.depth);
        if depth > at_most {
            let what = format!("nested deeper than {at_most} levels (`limits.json_depth`)");
            return Err(self.0.stop(Fault::Malformed(what)));
        }
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = self.0.below(list.len().to_string(), || items.next_element_seed(self))? {
            list.push(item);
            self.0.count(list.len())?;
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if FORBIDDEN_KEYS.contains(&key.as_str()) {
                return Err(self.0.stop(Fault::ForbiddenKey(self.0.pointer_to(&key))));
            }
            if members.contains_key(&key) {
                return Err(self.0.stop(Fault::DuplicateKey(self.0.pointer_to(&key))));
            }
            let value = self.0.below(key.clone(), || entries.next_value_seed(self))?;
            members.insert(key, value);
            self.0.count(members.len())?;
        }
        Ok(Value::Object(members))
    }
}

/// Lets `serde` structs be read from a value already read strictly.
pub fn typed<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_found_wherever_it_is_and_however_spelled() {
        for (text, at) in [
            (r#"{"a":1,"a":2}"#, "/a"),
            (r#"{"a":1,"\u0061":2}"#, "/a"),
            (r#"{"x":[{"b/c":{"k":1,"k":1}}]}"#, "/x/0/b~1c/k"),
        ] {
            assert_eq!(Document::read(text.as_bytes()), Err(Fault::DuplicateKey(at.into())), "{text}");
        }
    }

    #[test]
    fn keys_with_a_meaning_of_their_own_are_refused() {
        for (text, at) in [
            (r#"{"__proto__":{}}"#, "/__proto__"),
            (r#"{"c":{"constructor":{"prototype":1}}}"#, "/c/constructor"),
            (r#"{"\u005f_proto__":1}"#, "/__proto__"),
        ] {
            assert_eq!(Document::read(text.as_bytes()), Err(Fault::ForbiddenKey(at.into())), "{text}");
        }
    }

    #[test]
    fn what_readers_disagree_about_is_not_json_here() {
        let levels = Bounds::DEFAULT.depth + 1;
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        let texts: [&[u8]; 13] = [
            b"",
            b"[]",
            b"1",
            b"{} {}",
            b"{}x",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\\ud800\"}",
            b"{\"a\":1e400}",
            b"{\"a\":NaN}",
            b"{\"a\":01}",
            b"{/**/}",
            deep.as_bytes(),
        ];
        for text in texts {
            let read = Document::read(text);
            assert!(matches!(read, Err(Fault::Malformed(_))), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_fault_never_quotes_the_input() {
        let fault = Document::read(b"\"hunter2\"").unwrap_err().to_string();
        assert!(!fault.contains("hunter2"), "{fault}");
    }

    #[test]
    fn only_plain_digits_read_as_an_integer() {
        for (text, plain) in [
            ("3600", true),
            ("0", true),
            ("-0", false),
            ("0.0", false),
            ("36e2", false),
            ("1e-400", false),
            ("3600.00000000000000001", false),
            ("18446744073709551616", false),
        ] {
            let value = value(text.as_bytes()).unwrap();
            assert_eq!(value.as_u64().is_some(), plain, "{text}");
        }
    }
}
