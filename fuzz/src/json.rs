//! What the strict reader accepts, every JSON reader reads the same; and the canonical form says the same again.

use patchwarden::json::{Document, canonical};
use serde_json::{Map, Number, Value};

/// Any bytes as a body.
pub fn json(bytes: &[u8]) {
    let Ok(document) = Document::read(bytes) else { return };
    let judged = in_doubles(&document.into_value());
    let last_wins: Value = serde_json::from_slice(bytes).expect("serde_json reads what was accepted");
    assert_eq!(in_doubles(&last_wins), judged, "where the last of two keys wins");
    assert_eq!(first_wins(bytes).as_ref(), Some(&judged), "where the first of two keys wins");

    let canonical_form = canonical(&judged);
    let again = Document::read(&canonical_form).expect("the canonical form is strict").into_value();
    assert_eq!(in_doubles(&again), judged, "the canonical form says something else");
    assert_eq!(first_wins(&canonical_form).as_ref(), Some(&judged));
    assert_eq!(canonical(&again), canonical_form, "the canonical form is not canonical");
}

/// Numbers as JavaScript has them.
fn in_doubles(value: &Value) -> Value {
    match value {
        Value::Number(number) => {
            number.as_f64().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
        }
        Value::Array(items) => items.iter().map(in_doubles).collect(),
        Value::Object(members) => {
            members.iter().map(|(key, value)| (key.clone(), in_doubles(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// A reader of its own, on nothing but RFC 8259: of two equal keys the first counts.
fn first_wins(bytes: &[u8]) -> Option<Value> {
    let mut reader = Reader(std::str::from_utf8(bytes).ok()?);
    let value = reader.value()?;
    reader.blank();
    reader.0.is_empty().then_some(value)
}

struct Reader<'a>(&'a str);

impl Reader<'_> {
    fn blank(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, token: &str) -> Option<()> {
        self.blank();
        self.0 = self.0.strip_prefix(token)?;
        Some(())
    }

    fn value(&mut self) -> Option<Value> {
        self.blank();
        match self.0.chars().next()? {
            '{' => self.object(),
            '[' => self.array(),
            '"' => self.string().map(Value::String),
            't' => self.take("true").map(|()| Value::Bool(true)),
            'f' => self.take("false").map(|()| Value::Bool(false)),
            'n' => self.take("null").map(|()| Value::Null),
            _ => self.number(),
        }
    }

    fn object(&mut self) -> Option<Value> {
        self.take("{")?;
        let mut members = Map::new();
        if self.take("}").is_some() {
            return Some(members.into());
        }
        loop {
            self.blank();
            let key = self.string()?;
            self.take(":")?;
            let value = self.value()?;
            members.entry(key).or_insert(value);
            if self.take(",").is_none() {
                return self.take("}").map(|()| members.into());
            }
        }
    }

    fn array(&mut self) -> Option<Value> {
        self.take("[")?;
        let mut items = Vec::new();
        if self.take("]").is_some() {
            return Some(items.into());
        }
        loop {
            items.push(self.value()?);
            if self.take(",").is_none() {
                return self.take("]").map(|()| items.into());
            }
        }
    }

    fn number(&mut self) -> Option<Value> {
        let end = self.0.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)).unwrap_or(self.0.len());
        let (text, rest) = self.0.split_at(end);
        self.0 = rest;
        text.parse().ok().and_then(Number::from_f64).map(Value::Number)
    }

    fn string(&mut self) -> Option<String> {
        let mut rest = self.0.strip_prefix('"')?.chars();
        let mut units = Vec::new();
        loop {
            match rest.next()? {
                '"' => break,
                '\\' => units.push(match rest.next()? {
                    'n' => 0x0a,
                    't' => 0x09,
                    'r' => 0x0d,
                    'b' => 0x08,
                    'f' => 0x0c,
                    'u' => {
                        let digits = rest.as_str().get(..4)?;
                        rest = rest.as_str()[4..].chars();
                        u16::from_str_radix(digits, 16).ok()?
                    }
                    plain @ ('"' | '\\' | '/') => u16::try_from(u32::from(plain)).ok()?,
                    _ => return None,
                }),
                control if control < ' ' => return None,
                plain => units.extend_from_slice(plain.encode_utf16(&mut [0; 2])),
            }
        }
        self.0 = rest.as_str();
        String::from_utf16(&units).ok()
    }
}
