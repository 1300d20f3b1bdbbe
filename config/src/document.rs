//! A parsed YAML text whose values know where they stand, so that every error can name its line.
//!
//! `serde_yaml` keeps no positions in its values. It does put one into an error raised while reading: so the line of a
//! value is found, only when an error needs it, by reading the text once more and failing on purpose at that value.

use std::fmt;
use std::time::Duration;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::Value;

use crate::error::ConfigError;
use crate::units;

/// Longest settings text read, in bytes.
const MAX_LEN: usize = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Key(String),
    Index(usize),
}

/// Bounds of a number, both inclusive, and an example for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds<T> {
    pub min: T,
    pub max: T,
}

pub(crate) struct Document<'t> {
    text: &'t str,
    root: Value,
}

impl<'t> Document<'t> {
    pub fn parse(text: &'t str) -> Result<Self, ConfigError> {
        if text.len() > MAX_LEN {
            return Err(ConfigError::TooLong { len: text.len(), max: MAX_LEN });
        }
        let root = serde_yaml::from_str(text).map_err(|error| syntax(&error))?;
        Ok(Self { text, root })
    }

    pub fn root(&self) -> Cursor<'_> {
        Cursor { text: self.text, path: Vec::new(), value: &self.root }
    }
}

fn syntax(error: &serde_yaml::Error) -> ConfigError {
    let line = error.location().map_or(1, |l| l.line());
    let words = error.to_string().replace('\n', " ");
    // The parser appends its own position, which would stand twice in the line.
    let problem = words.split(" at line ").next().unwrap_or(&words).to_owned();
    ConfigError::Syntax { line, problem }
}

/// One value and the way to it.
#[derive(Clone)]
pub(crate) struct Cursor<'d> {
    text: &'d str,
    path: Vec<Segment>,
    value: &'d Value,
}

impl<'d> Cursor<'d> {
    /// The key with its path, as `chains.default[0].level`.
    pub fn name(&self) -> String {
        let mut name = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) if name.is_empty() => name.push_str(key),
                Segment::Key(key) => name.extend([".", key]),
                Segment::Index(index) => name.push_str(&format!("[{index}]")),
            }
        }
        if name.is_empty() { "the settings file".to_owned() } else { name }
    }

    pub fn line(&self) -> usize {
        line_of(self.text, &self.path)
    }

    pub fn bad(&self, problem: impl Into<String>, hint: impl Into<String>) -> ConfigError {
        ConfigError::BadValue { line: self.line(), key: self.name(), problem: problem.into(), hint: hint.into() }
    }

    fn wrong_type(&self, expected: &str) -> ConfigError {
        self.bad(format!("is {}", describe(self.value)), format!("write {expected}"))
    }

    /// The mapping here, none of whose keys is outside `known`.
    pub fn mapping(&self, known: &[&str]) -> Result<Map<'d>, ConfigError> {
        let map = self.any_mapping()?;
        for (key, cursor) in map.entries()? {
            if !known.contains(&key.as_str()) {
                let hint = suggestion(&key, known);
                return Err(ConfigError::UnknownKey { line: cursor.line(), key: cursor.name(), hint });
            }
        }
        Ok(map)
    }

    /// The mapping here, whatever its keys are.
    pub fn any_mapping(&self) -> Result<Map<'d>, ConfigError> {
        match self.value {
            Value::Mapping(_) => Ok(Map { cursor: self.clone() }),
            _ => Err(self.wrong_type("keys and values, as \"key: value\"")),
        }
    }

    pub fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Mapping(_))
    }

    pub fn is_sequence(&self) -> bool {
        matches!(self.value, Value::Sequence(_))
    }

    pub fn sequence(&self, max: usize) -> Result<Vec<Cursor<'d>>, ConfigError> {
        let Value::Sequence(items) = self.value else { return Err(self.wrong_type("a list, as \"[a, b]\"")) };
        if items.len() > max {
            return Err(self.bad(format!("has {} entries", items.len()), format!("use {max} at most")));
        }
        Ok(items.iter().enumerate().map(|(i, value)| self.child(Segment::Index(i), value)).collect())
    }

    pub fn text(&self) -> Result<&'d str, ConfigError> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong_type("a text")),
        }
    }

    pub fn boolean(&self) -> Result<bool, ConfigError> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub fn integer(&self, bounds: Bounds<u64>) -> Result<u64, ConfigError> {
        let number = match self.value {
            Value::Number(n) => n.as_u64(),
            _ => return Err(self.wrong_type(&format!("a number from {} to {}", bounds.min, bounds.max))),
        };
        self.bounded(number, bounds, |n| n.to_string())
    }

    pub fn bytes(&self, bounds: Bounds<u64>) -> Result<u64, ConfigError> {
        let bytes = match self.value {
            Value::Number(n) => n.as_u64(),
            Value::String(text) => units::parse_bytes(text),
            _ => return Err(self.wrong_type("a size, as \"256MiB\" (units: B, KiB, MiB, GiB, TiB)")),
        };
        let Some(bytes) = bytes else {
            return Err(self.wrong_type("a size, as \"256MiB\" (units: B, KiB, MiB, GiB, TiB)"));
        };
        self.bounded(Some(bytes), bounds, |n| units::format_bytes(*n))
    }

    pub fn duration(&self, bounds: Bounds<Duration>) -> Result<Duration, ConfigError> {
        let time = match self.value {
            Value::String(text) => units::parse_duration(text),
            _ => None,
        };
        let Some(time) = time else {
            return Err(self.wrong_type("a time, as \"5s\" (units: ms, s, m, h, d)"));
        };
        self.bounded(Some(time), bounds, |t| units::format_duration(*t))
    }

    /// A scalar or a pair of scalars as text: parameters belong to the plugin, which checks them.
    pub fn parameter(&self) -> Result<String, ConfigError> {
        match self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(value) => Ok(value.to_string()),
            Value::Sequence(items) if items.len() == 2 => {
                let ends = self.sequence(2)?;
                Ok(format!("{}..{}", ends[0].scalar()?, ends[1].scalar()?))
            }
            _ => Err(self.wrong_type("a text, a number, true, false or a pair as \"[1, 9]\"")),
        }
    }

    fn scalar(&self) -> Result<String, ConfigError> {
        match self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(self.wrong_type("a text or a number")),
        }
    }

    fn bounded<T: PartialOrd>(
        &self,
        value: Option<T>,
        bounds: Bounds<T>,
        show: impl Fn(&T) -> String,
    ) -> Result<T, ConfigError> {
        match value {
            Some(value) if value >= bounds.min && value <= bounds.max => Ok(value),
            other => Err(self.bad(
                format!("is {}", other.map_or_else(|| describe(self.value), |v| show(&v))),
                format!("it must be from {} to {}", show(&bounds.min), show(&bounds.max)),
            )),
        }
    }

    fn child(&self, segment: Segment, value: &'d Value) -> Cursor<'d> {
        let mut path = self.path.clone();
        path.push(segment);
        Cursor { text: self.text, path, value }
    }
}

/// A mapping at a known place.
pub(crate) struct Map<'d> {
    cursor: Cursor<'d>,
}

impl<'d> Map<'d> {
    /// The value of `key`; one that is left empty counts as not there.
    pub fn get(&self, key: &str) -> Option<Cursor<'d>> {
        let value = self.cursor.value.as_mapping()?.get(key)?;
        (!value.is_null()).then(|| self.cursor.child(Segment::Key(key.to_owned()), value))
    }

    pub fn required(&self, key: &str, hint: &str) -> Result<Cursor<'d>, ConfigError> {
        self.get(key).ok_or_else(|| {
            let name = self.cursor.child(Segment::Key(key.to_owned()), self.cursor.value).name();
            ConfigError::MissingKey { line: self.cursor.line(), key: name, hint: hint.to_owned() }
        })
    }

    /// All entries in the order of the text.
    pub fn entries(&self) -> Result<Vec<(String, Cursor<'d>)>, ConfigError> {
        let Some(mapping) = self.cursor.value.as_mapping() else { return Ok(Vec::new()) };
        mapping
            .iter()
            .map(|(key, value)| {
                let Value::String(key) = key else {
                    return Err(self.cursor.bad(format!("has the key {}", describe(key)), "keys are texts: quote it"));
                };
                Ok((key.clone(), self.cursor.child(Segment::Key(key.clone()), value)))
            })
            .collect()
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a group of keys".to_owned(),
        Value::Tagged(tagged) => format!("tagged {}", tagged.tag),
    }
}

/// Names the key most like `key`, or else all there are.
pub(crate) fn suggestion(key: &str, known: &[&str]) -> String {
    match known.iter().map(|k| (distance(key, k), *k)).min() {
        Some((distance, nearest)) if distance <= 1 + key.len() / 4 => format!("did you mean {nearest}?"),
        _ => format!("there are {}", known.join(", ")),
    }
}

/// Edit distance (Levenshtein) in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn line_of(text: &str, path: &[Segment]) -> usize {
    let found = Locate(path).deserialize(serde_yaml::Deserializer::from_str(text));
    found.err().and_then(|error| error.location()).map_or(1, |location| location.line())
}

/// Fails at the value (or key) that `path` leads to, so that the error carries its place.
struct Locate<'p>(&'p [Segment]);

const FOUND: &str = "found";

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FOUND)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.0.split_first() else { return Err(de::Error::custom(FOUND)) };
        while let Some(hit) = map.next_key_seed(LocateKey { wanted, stop: rest.is_empty() })? {
            if hit {
                map.next_value_seed(Locate(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.0.split_first() else { return Err(de::Error::custom(FOUND)) };
        for _ in 0..*wanted {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Locate(rest)).map(|_| ())
    }
}

struct LocateKey<'p> {
    wanted: &'p str,
    stop: bool,
}

impl<'de> DeserializeSeed<'de> for LocateKey<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for LocateKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.stop => Err(de::Error::custom(FOUND)),
            hit => Ok(hit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_knows_its_line() {
        let text = "a: 1\nb:\n  c: [1, 2]\n  d:\n    - x: 1\n    - y: 2\n";
        let key = |k: &str| Segment::Key(k.to_owned());
        assert_eq!(line_of(text, &[key("a")]), 1);
        assert_eq!(line_of(text, &[key("b")]), 2);
        assert_eq!(line_of(text, &[key("b"), key("c"), Segment::Index(1)]), 3);
        assert_eq!(line_of(text, &[key("b"), key("d"), Segment::Index(1)]), 6);
        assert_eq!(line_of(text, &[key("b"), key("d"), Segment::Index(1), key("y")]), 6);
    }

    #[test]
    fn near_keys_are_suggested_and_far_ones_listed() {
        assert_eq!(suggestion("memroy", &["memory", "log"]), "did you mean memory?");
        assert_eq!(suggestion("zzz", &["memory", "log"]), "there are memory, log");
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
