//! What a verb that did not do its work says, and the exit code it ends with.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use serde_json::{Value, json};

/// A failure at the edge: one line for people, and whether it was wrong use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    usage: bool,
    /// The mount's own answer, whose further fields are for programs.
    reply: Option<Value>,
}

impl Failure {
    /// The work could not be done: exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: one_line(&message.into()), hint: None, usage: false, reply: None }
    }

    /// The command makes no sense as it was given: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new(message) }
    }

    /// An error of a lower layer with all its causes, after a context such as `Could not mount /mnt`.
    pub fn caused(context: impl fmt::Display, error: &(dyn Error + 'static)) -> Self {
        Self::new(format!("{context}: {}", chain(error)))
    }

    /// What to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(one_line(&hint.into())), ..self }
    }

    /// The answer that said so.
    pub fn answer(self, reply: Value) -> Self {
        Self { reply: Some(reply), ..self }
    }

    /// 1, or 2 for wrong use.
    pub fn code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }

    /// The same as an exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The form of `--json`, which also crosses the pipe from a starting daemon to its parent.
    pub fn to_json(&self) -> Value {
        let mut json = json!({ "ok": false, "exit": self.code(), "msg": self.message, "hint": self.hint });
        for (key, value) in self.reply.iter().filter_map(Value::as_object).flatten() {
            if json.get(key).is_none() {
                json[key] = value.clone();
            }
        }
        json
    }

    /// Takes back what [`Failure::to_json`] made.
    pub fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let hint = value.get("hint").and_then(|hint| hint.as_str()).map(str::to_owned);
        let usage = value.get("exit")?.as_u64()? == 2;
        Some(Self { message: value.get("msg")?.as_str()?.to_owned(), hint, usage, reply: None })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {}", continued(hint)),
            None => Ok(()),
        }
    }
}

impl Error for Failure {}

/// An error and its causes, joined; a cause that its error already quotes is not said twice.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// A sentence as the rest of another: with a small first letter, unless the word is all capitals.
fn continued(sentence: &str) -> String {
    let mut chars = sentence.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(chars).collect(),
        _ => sentence.to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_survives_the_pipe() {
        let failure = Failure::usage("Bad\n thing").hint("do\nother");
        assert_eq!(failure.to_string(), "Bad; thing; do; other");
        assert_eq!(failure.code(), 2);
        assert_eq!(Failure::from_json(&failure.to_json().to_string()), Some(failure));
        assert_eq!(Failure::new("X").hint("Try again").to_string(), "X; try again");
        assert_eq!(Failure::new("X").hint("HOME is unset").to_string(), "X; HOME is unset");
        assert_eq!(Failure::new("x").code(), 1);
        assert_eq!(Failure::from_json("{}"), None);
    }

    #[test]
    fn programs_see_what_the_mount_answered() {
        let reply = json!({ "ok": false, "code": "ORDER", "errno": "EINVAL", "msg": "other words" });
        let json = Failure::new("Words").answer(reply).to_json();
        assert_eq!((&json["code"], &json["errno"], &json["msg"]), (&"ORDER".into(), &"EINVAL".into(), &"Words".into()));
    }

    #[test]
    fn causes_are_joined_once() {
        let inner = std::io::Error::other("disk gone");
        let outer =
            axiomfs_api::StoreError::new(axiomfs_api::StoreErrorKind::NotFound, "get", "config").with_source(inner);
        assert_eq!(
            Failure::caused("Could not open", &outer).to_string(),
            "Could not open: Store could not get config: disk gone"
        );
    }
}
