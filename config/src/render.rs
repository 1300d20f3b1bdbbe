use serde_yaml::{Mapping, Value};

use crate::pipeline::{ChainSettings, OnError, OnStoreError, Pipeline, RouteSettings, Selector, StepSettings, Verify};
use crate::settings::VERSION;
use crate::units::{format_bytes, format_duration};

impl Pipeline {
    /// The text of `.axiomfs/chain.yaml`, which [`Pipeline::parse`] takes back unchanged.
    pub fn render(&self) -> String {
        let top = map([
            ("version", VERSION.into()),
            ("require", self.require.iter().map(|name| text(name)).collect::<Vec<_>>().into()),
            (
                "limits",
                map([
                    ("max_in_flight", self.limits.max_in_flight.into()),
                    ("plugin_memory", text(&format_bytes(self.limits.plugin_memory))),
                    ("frame_timeout", text(&format_duration(self.limits.frame_timeout))),
                ]),
            ),
            ("chains", chains(&self.chains)),
            ("routes", self.routes.iter().map(route).collect::<Vec<_>>().into()),
            ("policies", self.policies()),
            ("store", self.store()),
        ]);
        serde_yaml::to_string(&top).expect("a tree of texts and numbers has a YAML form")
    }

    fn policies(&self) -> Value {
        let policies = &self.policies;
        map([
            (
                "rotate",
                map([
                    ("age", text(&format_duration(policies.rotate.age))),
                    ("bytes", text(&format_bytes(policies.rotate.bytes))),
                ]),
            ),
            ("verify", map([("builtin", verify(policies.verify_builtin)), ("other", verify(Verify::Always))])),
        ])
    }

    fn store(&self) -> Value {
        let on_error = match &self.store.on_error {
            OnStoreError::Fail => text("fail"),
            OnStoreError::Retry(retry) => {
                let backoff = [retry.backoff.0, retry.backoff.1].map(|time| text(&format_duration(time)));
                map([("retry", map([("count", retry.count.into()), ("backoff", backoff.to_vec().into())]))])
            }
        };
        let uploads: Vec<Value> = vec![self.store.uploads.min.into(), self.store.uploads.max.into()];
        map([("on_error", on_error), ("uploads", map([("adapt", uploads.into())]))])
    }
}

fn chains(chains: &[ChainSettings]) -> Value {
    let entry = |chain: &ChainSettings| (text(&chain.name), chain.steps.iter().map(step).collect::<Vec<_>>().into());
    Value::Mapping(chains.iter().map(entry).collect())
}

fn step(step: &StepSettings) -> Value {
    let mut entries = Mapping::new();
    entries.insert(text("plugin"), text(&step.plugin));
    for (key, value) in &step.params {
        entries.insert(text(key), parameter(value));
    }
    match &step.on_error {
        OnError::Fail => {}
        OnError::Skip => {
            entries.insert(text("on_error"), text("skip"));
        }
        OnError::Fallback(chain) => {
            entries.insert(text("on_error"), map([("fallback", text(chain))]));
        }
    }
    Value::Mapping(entries)
}

/// A parameter as a person would write it: only where that reads back as the same text.
fn parameter(value: &str) -> Value {
    let number = |text: &str| text.parse::<i64>().ok().filter(|n| n.to_string() == text).map(Value::from);
    if let Some(number) = number(value) {
        return number;
    }
    if let Some((Some(low), Some(high))) = value.split_once("..").map(|(low, high)| (number(low), number(high))) {
        return vec![low, high].into();
    }
    match value {
        "true" => true.into(),
        "false" => false.into(),
        other => text(other),
    }
}

fn route(route: &RouteSettings) -> Value {
    let selector = match &route.selector {
        Selector::Under(path) => ("under", text(path)),
        Selector::Match(glob) => ("match", text(glob)),
    };
    let mut entries = Mapping::new();
    entries.insert(text(selector.0), selector.1);
    entries.insert(text("chain"), text(&route.chain));
    if route.allow_unencrypted {
        entries.insert(text("allow_unencrypted"), true.into());
    }
    Value::Mapping(entries)
}

fn verify(verify: Verify) -> Value {
    match verify {
        Verify::Always => text("always"),
        Verify::Sample(n) => text(&format!("sample/{n}")),
    }
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Mapping(entries.into_iter().map(|(key, value)| (text(key), value)).collect())
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}
