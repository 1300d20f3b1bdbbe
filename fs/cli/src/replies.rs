//! The host's answers as JSON.

use std::time::Duration;

use axiomfs_host::{ChainInfo, Matcher, PluginInfo, Reply, Route, StoreTotals};
use axiomfs_live::SnapshotInfo;
use serde_json::{Value, json};

/// What [`plugin`] tells that is counted.
pub const PLUGIN_COUNTERS: [&str; 8] = [
    "encoded_frames",
    "encoded_from_bytes",
    "encoded_to_bytes",
    "decoded_frames",
    "decoded_from_bytes",
    "decoded_to_bytes",
    "errors",
    "memory_max",
];

/// One answer.
pub fn to_json(reply: &Reply) -> Value {
    match reply {
        Reply::Chains { generation, chains } => {
            json!({ "ok": true, "generation": generation, "chains": chains.iter().map(chain).collect::<Vec<_>>() })
        }
        Reply::Swapped { generation, chain, took } => json!({
            "ok": true,
            "generation": generation,
            "name": chain.name,
            "chain": chain.steps,
            "id": chain.id,
            "took_ms": millis(*took),
        }),
        Reply::Tested { chain, report } => json!({
            "ok": true,
            "name": chain.name,
            "chain": chain.steps,
            "frames": report.frames,
            "raw_bytes": report.raw_bytes,
            "encoded_bytes": report.encoded_bytes,
            "took_ms": millis(report.took),
        }),
        Reply::Plugins(plugins) => json!({ "ok": true, "plugins": plugins.iter().map(plugin).collect::<Vec<_>>() }),
        Reply::Plugin { plugin: info, took } => json!({ "ok": true, "plugin": plugin(info), "took_ms": millis(*took) }),
        Reply::Routes(routes) => json!({ "ok": true, "routes": routes.iter().map(route).collect::<Vec<_>>() }),
        Reply::Explained { path, chain, rule } => {
            json!({ "ok": true, "path": path, "chain": chain, "rule": rule.as_ref().map(route) })
        }
    }
}

fn chain(chain: &ChainInfo) -> Value {
    json!({ "name": chain.name, "chain": chain.steps, "id": chain.id, "in_flight": chain.in_flight })
}

fn route(route: &Route) -> Value {
    let (key, pattern) = match &route.matcher {
        Matcher::Under(path) => ("under", path),
        Matcher::Match(glob) => ("match", glob),
    };
    let mut value = json!({ "chain": route.chain, "allow_unencrypted": route.allow_unencrypted });
    value[key] = pattern.as_str().into();
    value
}

/// One plugin with all that is known of it.
pub fn plugin(plugin: &PluginInfo) -> Value {
    let params: serde_json::Map<String, Value> =
        plugin.params.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    json!({
        "id": plugin.id,
        "kind": format!("{:?}", plugin.kind).to_lowercase(),
        "version": plugin.version,
        "summary": plugin.summary,
        "loaded": plugin.loaded,
        "proven": plugin.proven,
        "writes": plugin.writes,
        "reads": plugin.reads,
        "distrusted": plugin.distrusted,
        "provides": plugin.provides,
        "requires": plugin.requires,
        "before": plugin.before,
        "after": plugin.after,
        "skippable": plugin.skippable,
        "memory": plugin.memory,
        "chains": plugin.chains,
        "params": params,
        "encoded_frames": plugin.encoded_frames,
        "encoded_from_bytes": plugin.encoded_from_bytes,
        "encoded_to_bytes": plugin.encoded_to_bytes,
        "decoded_frames": plugin.decoded_frames,
        "decoded_from_bytes": plugin.decoded_from_bytes,
        "decoded_to_bytes": plugin.decoded_to_bytes,
        "errors": plugin.errors,
        "memory_max": plugin.memory_max,
    })
}

/// What a store's file `stats` says.
pub fn store_counters(totals: StoreTotals) -> String {
    json!({ "requests": totals.requests, "errors": totals.errors, "bytes": totals.bytes }).to_string()
}

/// A list of snapshots, the oldest first; times in seconds since 1970.
pub fn snapshots(list: &[SnapshotInfo]) -> Value {
    let mut list: Vec<&SnapshotInfo> = list.iter().collect();
    list.sort_by_key(|snapshot| (snapshot.created.secs, snapshot.created.nanos, snapshot.ordinal));
    list.iter()
        .map(|snapshot| json!({ "name": snapshot.name, "created": snapshot.created.secs, "committed": snapshot.committed }))
        .collect()
}

/// Milliseconds with one digit after the point.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(millis(Duration::from_micros(3141)), 3.1);
        assert_eq!(millis(Duration::ZERO), 0.0);
    }

    #[test]
    fn snapshots_are_listed_by_age() {
        let snapshot = |name: &str, secs, ordinal| SnapshotInfo {
            name: name.into(),
            ordinal,
            created: axiomfs_live::Time { secs, nanos: 0 },
            committed: true,
        };
        let list = snapshots(&[snapshot("a", 20, 2), snapshot("b", 10, 1)]);
        assert_eq!((list[0]["name"].as_str(), list[1]["name"].as_str()), (Some("b"), Some("a")));
    }

    #[test]
    fn a_route_names_its_pattern() {
        let rule = Route { matcher: Matcher::Match("*.jpg".into()), chain: "media".into(), allow_unencrypted: false };
        let reply = to_json(&Reply::Explained { path: "/a.jpg".into(), chain: "media".into(), rule: Some(rule) });
        assert_eq!(reply["rule"]["match"], "*.jpg");
        assert_eq!(reply["ok"], true);
    }
}
