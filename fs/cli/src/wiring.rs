//! Puts the parts together: which plugins there are, and how settings become components and components settings.

use std::sync::Arc;

use axiomfs_api::Seal;
use axiomfs_config::{ChainSettings, LimitSettings, OnError, Pipeline, RouteSettings, Selector, StepSettings, Verify};
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::{ChainSpec, Host, HostError, Limits, Matcher, Registry, Route, RouteTable, StepSpec};
use axiomfs_transform_faulty::Factory as Faulty;

use crate::faults;

/// All plugins of this build; those for tests only where the environment asks for them.
fn registry() -> Registry {
    let registry = Registry::new()
        .transform(axiomfs_compression_zstd::Factory)
        .transform(axiomfs_compression_lz4::Factory)
        .transform(axiomfs_padding_padme::Factory)
        .seal(Aes256Gcm)
        .other(&axiomfs_chunker_fastcdc::DESCRIPTOR)
        .other(&axiomfs_storage_local::DESCRIPTOR)
        .other(&axiomfs_storage_s3::DESCRIPTOR);
    if !faults::wants_plugins() {
        return registry;
    }
    registry.unproven_transform(Faulty::new()).unproven_transform(Faulty::large())
}

/// The one seal there is, counted by `host`.
pub fn seal(host: &Host) -> Arc<dyn Seal> {
    host.seal(Aes256Gcm.descriptor().id).unwrap_or_else(|| Arc::new(Aes256Gcm))
}

/// The host with the chains of the settings.
///
/// # Errors
/// [`HostError`] if a chain can't run: unknown plugin, bad parameter, wrong order, missing requirement.
pub fn host(pipeline: &Pipeline) -> Result<Arc<Host>, HostError> {
    let limits = limits(pipeline);
    Host::new(registry(), chains(pipeline), routes(pipeline)?, limits, pipeline.require.clone()).map(Arc::new)
}

/// The chains as the host takes them.
pub fn chains(pipeline: &Pipeline) -> Vec<ChainSpec> {
    let step = |step: &StepSettings| StepSpec {
        plugin: step.plugin.clone(),
        params: step.params.clone(),
        on_error: match &step.on_error {
            OnError::Fail => axiomfs_host::OnError::Fail,
            OnError::Skip => axiomfs_host::OnError::Skip,
            OnError::Fallback(chain) => axiomfs_host::OnError::Fallback(chain.clone()),
        },
    };
    let chain =
        |chain: &ChainSettings| ChainSpec { name: chain.name.clone(), steps: chain.steps.iter().map(step).collect() };
    pipeline.chains.iter().map(chain).collect()
}

/// The routes as the host takes them.
///
/// # Errors
/// [`HostError::BadRoute`] for a pattern that is none.
pub fn routes(pipeline: &Pipeline) -> Result<RouteTable, HostError> {
    let route = |route: &RouteSettings| Route {
        matcher: match &route.selector {
            Selector::Under(path) => Matcher::Under(path.clone()),
            Selector::Match(glob) => Matcher::Match(glob.clone()),
        },
        chain: route.chain.clone(),
        allow_unencrypted: route.allow_unencrypted,
    };
    RouteTable::new(pipeline.routes.iter().map(route).collect())
}

/// The limits as the host takes them.
pub fn limits(pipeline: &Pipeline) -> Limits {
    Limits {
        max_in_flight: pipeline.limits.max_in_flight as usize,
        plugin_memory: usize::try_from(pipeline.limits.plugin_memory).unwrap_or(usize::MAX),
        frame_timeout: pipeline.limits.frame_timeout,
        verify_sample: match pipeline.policies.verify_builtin {
            Verify::Always => 1,
            Verify::Sample(n) => n,
        },
        ..Limits::default()
    }
}

/// What the host does now, as settings; what it does not know (policies, store) comes from `settings`.
pub fn pipeline_of(host: &Host, settings: &Pipeline) -> Pipeline {
    let limits = host.limits();
    Pipeline {
        require: host.require(),
        limits: LimitSettings {
            max_in_flight: u32::try_from(limits.max_in_flight).unwrap_or(u32::MAX),
            plugin_memory: limits.plugin_memory as u64,
            frame_timeout: limits.frame_timeout,
        },
        chains: host.chain_specs().iter().map(chain_settings).collect(),
        routes: host.routes().routes().map(route_settings).collect(),
        ..settings.clone()
    }
}

fn chain_settings(chain: &ChainSpec) -> ChainSettings {
    let step = |step: &StepSpec| StepSettings {
        plugin: step.plugin.clone(),
        params: step.params.clone(),
        on_error: match &step.on_error {
            axiomfs_host::OnError::Fail => OnError::Fail,
            axiomfs_host::OnError::Skip => OnError::Skip,
            axiomfs_host::OnError::Fallback(chain) => OnError::Fallback(chain.clone()),
        },
    };
    ChainSettings { name: chain.name.clone(), steps: chain.steps.iter().map(step).collect() }
}

fn route_settings(route: &Route) -> RouteSettings {
    RouteSettings {
        selector: match &route.matcher {
            Matcher::Under(path) => Selector::Under(path.clone()),
            Matcher::Match(glob) => Selector::Match(glob.clone()),
        },
        chain: route.chain.clone(),
        allow_unencrypted: route.allow_unencrypted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../config/chains.yaml");

    #[test]
    fn settings_survive_the_way_through_the_host() {
        let pipeline = Pipeline::parse(EXAMPLE).unwrap();
        let mut shown = pipeline_of(&host(&pipeline).unwrap(), &pipeline);
        // The host keeps chains by name, not in the order of the file.
        shown.chains.sort_by(|a, b| a.name.cmp(&b.name));
        let mut expected = pipeline.clone();
        expected.chains.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(shown, expected);
    }

    /// What commands have made of the chains is shown so that it can be written back, up to the most there may be.
    #[test]
    fn what_commands_make_reads_back() {
        use axiomfs_config::{MAX_ENTRIES, MAX_STEPS};
        assert_eq!((MAX_ENTRIES, MAX_ENTRIES), (axiomfs_host::MAX_CHAINS, axiomfs_host::MAX_ROUTES));
        assert_eq!(MAX_STEPS, axiomfs_host::MAX_CHAIN_STEPS);
        let seal = "{plugin: aes-256-gcm}";
        let many: String = (2..MAX_ENTRIES).map(|number| format!("  c{number}: [{seal}]\n")).collect();
        let routes_text = "- {match: '*.y', chain: c4}\n".repeat(MAX_ENTRIES - 3);
        let text = format!("version: 1\nrequire: []\nchains:\n  default: [{seal}]\n{many}routes:\n{routes_text}");
        let pipeline = Pipeline::parse(&text).unwrap();
        let host = host(&pipeline).unwrap();
        let run = |line: &str| {
            let command = axiomfs_host::parse_command(line)?;
            host.execute(&command).expect("a command of the host").map(drop)
        };
        let unseal = format!("chain remove default aes-256-gcm confirm={}", host.confirm_token());
        for line in [
            unseal.as_str(),
            "chain new c1 padme|aes-256-gcm",
            "route add under / c1",
            "route add under /a c2 first",
            "route add match *.x c3",
        ] {
            run(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        let text = pipeline_of(&host, &pipeline).render();
        let read = Pipeline::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        host.replace(&chains(&read), routes(&read).unwrap(), limits(&read), read.require.clone(), None).unwrap();
        assert_eq!(pipeline_of(&host, &read).render(), text);
        // One more of each is refused, whichever way it comes.
        let steps = vec!["padme"; MAX_STEPS + 1];
        let longest = format!("chain set default {}", steps.join("|"));
        for (line, word) in [
            ("chain new more aes-256-gcm", "256 chains at most"),
            ("route add match *.z c1", "256 routes at most"),
            (longest.as_str(), "at most 16 steps"),
        ] {
            let error = run(line).unwrap_err();
            assert!(error.msg.contains(word), "{error}");
        }
        let step = "{plugin: padme},".repeat(MAX_STEPS + 1);
        for (text, word) in [
            (text.replacen("chains:\n", "chains:\n  more: []\n", 1), "use 256 at most"),
            (text.replacen("routes:\n", "routes:\n- {match: z, chain: default}\n", 1), "use 256 at most"),
            (format!("version: 1\nchains: {{default: [{step}]}}\n"), "use 16 at most"),
        ] {
            let error = Pipeline::parse(&text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    /// Arbitrary damage to `chain.yaml`: nothing panics, and what is refused has changed nothing.
    #[test]
    fn a_damaged_chain_file_is_taken_whole_or_not_at_all() {
        const PIECES: [&str; 12] = [
            "lz4",
            "padme",
            "[1, 9]",
            "99",
            "{",
            "]",
            ": ",
            "fallback: default",
            "aes-256-gcm",
            "\n  ",
            "require: []",
            "~",
        ];
        let pipeline = Pipeline::parse(EXAMPLE).unwrap();
        let host = host(&pipeline).unwrap();
        let mut noise = axiomfs_api::conformance::Noise::new(11);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..600 {
            let mut text = EXAMPLE.as_bytes().to_vec();
            for _ in 0..1 + noise.below(3) {
                let (at, len) = (noise.below(text.len()), noise.below(12));
                let end = (at + len).min(text.len());
                let piece = match noise.below(3) {
                    0 => Vec::new(),
                    1 => noise.bytes(1 + len / 4),
                    _ => PIECES[noise.below(PIECES.len())].into(),
                };
                text.splice(at..end, piece);
            }
            let before = (host.chain_specs(), host.generation(), host.require(), host.limits());
            let Ok(parsed) = Pipeline::parse(&String::from_utf8_lossy(&text)) else { continue };
            let replaced = routes(&parsed).and_then(|routes| {
                host.replace(&chains(&parsed), routes, limits(&parsed), parsed.require.clone(), None)
            });
            match replaced {
                Ok(_) => taken += 1,
                Err(error) => {
                    let now = (host.chain_specs(), host.generation(), host.require(), host.limits());
                    assert_eq!(now, before, "refused ({error}), and changed");
                    refused += 1;
                }
            }
            assert!(host.require().contains(&"encryption".to_owned()), "relaxed without a confirmation");
        }
        assert!(taken > 20 && refused > 20, "{taken} taken, {refused} refused: the damage is too great or too small");
    }

    /// The example that the design shows.
    #[test]
    fn a_pipeline_with_everything_in_it_runs() {
        let pipeline = Pipeline::parse(
            "version: 1\n\
             require: [encryption]\n\
             limits: {max_in_flight: 32, plugin_memory: 10MiB, frame_timeout: 5s}\n\
             chains:\n  default: [{plugin: zstd, level: 3, adapt: [1, 9], on_error: skip}, {plugin: aes-256-gcm}]\n  \
               media:   [{plugin: aes-256-gcm}]\n  \
               fast:    [{plugin: lz4, on_error: skip}, {plugin: padme}, {plugin: aes-256-gcm}]\n  \
               archive: [{plugin: zstd, level: 19, on_error: {fallback: default}}, {plugin: aes-256-gcm}]\n\
             routes:\n  - {under: /logs, chain: archive}\n  - {match: \"*.{jpg,mp4,zst,gz}\", chain: media}\n\
             policies: {rotate: {age: 30d, bytes: 1TiB}, verify: {builtin: sample/16, other: always}}\n\
             store: {on_error: {retry: {count: 8, backoff: [200ms, 30s]}}, uploads: {adapt: [2, 32]}}\n",
        )
        .unwrap();
        let host = host(&pipeline).unwrap();
        assert_eq!(
            host.chain("default").unwrap().spec().to_string(),
            "zstd(level=3,adapt=1..9,on_error=skip)|aes-256-gcm"
        );
        assert_eq!(&*host.route(b"logs/a"), "archive");
        let mut shown = pipeline_of(&host, &pipeline);
        shown.chains.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(Pipeline::parse(&shown.render()).unwrap(), shown, "adapt survives being shown and read again");
    }

    #[test]
    fn the_default_settings_run() {
        let host = host(&Pipeline::default()).unwrap();
        assert_eq!(host.chain_specs().len(), 1);
        assert_eq!(&*host.route(b"any/file"), "default");
    }

    #[test]
    fn chains_that_can_not_run_are_refused() {
        for (chains, word) in [
            ("default: [{plugin: gzip}, {plugin: aes-256-gcm}]", "gzip"),
            ("default: [{plugin: aes-256-gcm}, {plugin: zstd}]", "aes-256-gcm"),
            ("default: [{plugin: zstd}]", "encryption"),
            ("default: [{plugin: zstd, level: 99}, {plugin: aes-256-gcm}]", "level"),
        ] {
            let pipeline = Pipeline::parse(&format!("version: 1\nchains:\n  {chains}\n")).unwrap();
            let error = crate::failure::chain(&host(&pipeline).expect_err(chains));
            assert!(error.contains(word), "{chains}: {error}");
        }
    }
}
