//! Advice: what could be better, what shows it, what it would bring, and the commands for it. Everything is worked out from
//! what this mount has counted and from how things are now, so advice goes away once it is followed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axiomfs_config::{Pipeline, format_duration};
use axiomfs_host::{ChainSpec, Host, OnError, StepSpec};
use axiomfs_live::Volume;
use axiomfs_repository::{Label, LabelCount, Repository, Reread};
use serde_json::{Value, json};

use crate::output::{bytes, quoted};
use crate::remount::Remount;
use crate::status::Facts;

/// Less than so many bytes of one ending are not worth a word.
const ENOUGH: u64 = 16 << 20;
/// What stays longer than this part of its length does not compress.
const NOT_SMALLER: f64 = 0.97;
/// What gets shorter than this part of its length is worth a harder try.
const TEXT: f64 = 0.7;
/// A chain from this level on is one for cold data.
const HARD: i64 = 15;
/// The level that is tried out.
const ARCHIVE: i64 = 19;
/// A harder level must save at least this part of what is stored.
const WORTH: f64 = 0.05;
/// Files that were neither read nor changed for so long are cold.
const COLD: i64 = 86_400;
/// Bytes of a file that are tried out, and of how many files.
const PEEK: usize = 256 << 10;
const TRIED: usize = 6;
/// Data that was fetched again is worth a word from here on, and if it is at least a quarter of all.
const FETCHED_AGAIN: u64 = 32 << 20;
/// Most endings that are tried out; what is larger comes first.
const TRIALS: usize = 64;

/// One piece of advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// A word for programs: `route`, `archive`, `memory`, `rotate`.
    pub kind: &'static str,
    /// What to do, in one line.
    pub title: String,
    /// What was seen.
    pub evidence: String,
    /// What it would bring.
    pub gain: String,
    /// The commands, in order.
    pub commands: Vec<String>,
}

/// What was seen when an ending was tried out at a harder level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    raw: usize,
    now: usize,
    harder: usize,
    cold: usize,
    looked_at: usize,
}

/// Gives advice about one mount.
pub struct Advisor {
    volume: Arc<Volume>,
    host: Arc<Host>,
    repository: Arc<Repository>,
    mountpoint: String,
    memory: u64,
    settings_file: Option<PathBuf>,
    remount: Remount,
    trials: Mutex<HashMap<Label, Trial>>,
}

impl Advisor {
    /// For the mount that `facts` tells of, and `remount` makes again.
    pub fn new(
        volume: Arc<Volume>,
        host: Arc<Host>,
        repository: Arc<Repository>,
        facts: &Facts,
        settings_file: Option<PathBuf>,
        remount: Remount,
    ) -> Self {
        Self {
            volume,
            host,
            repository,
            mountpoint: quoted(&facts.mountpoint),
            memory: facts.memory,
            settings_file,
            remount,
            trials: Mutex::default(),
        }
    }

    /// All advice there is now. From memory: what takes reading or trying was done by [`try_out`](Self::try_out).
    pub fn advice(&self, pipeline: &Pipeline) -> Vec<Advice> {
        let mut all = Vec::new();
        for count in self.repository.label_counts() {
            let Some(chain) = self.compressing(&count.name) else { continue };
            all.extend(self.incompressible(&count));
            all.extend(self.cold(&count, &chain));
        }
        all.extend(self.memory());
        all.extend(self.rotation(pipeline));
        all
    }

    /// Looks at files of endings that compress and tries them at a harder level. Takes a while, and may read from the store.
    pub fn try_out(&self) {
        for count in self.repository.label_counts().into_iter().take(TRIALS) {
            let Some(chain) = self.compressing(&count.name) else { continue };
            if !is_text(&count) || level_of(&chain).is_none_or(|level| level >= HARD) {
                continue;
            }
            match self.tried(count.label, &chain) {
                Some(trial) => self.trials().insert(count.label, trial),
                None => self.trials().remove(&count.label),
            };
        }
    }

    /// The chain that new files of the ending go through, if it compresses.
    fn compressing(&self, ending: &str) -> Option<ChainSpec> {
        let chain = self.host.chain(&self.host.route(probe(ending).as_bytes())).ok()?;
        chain.provides("compression").then(|| chain.spec().clone())
    }

    fn incompressible(&self, count: &LabelCount) -> Option<Advice> {
        if count.raw < ENOUGH || (count.encoded as f64) < count.raw as f64 * NOT_SMALLER {
            return None;
        }
        let (name, mut commands) = self.chain_without_compression()?;
        commands.push(self.route(&count.name, &name));
        Some(Advice {
            kind: "route",
            title: format!("Don't compress *.{}", count.name),
            evidence: format!(
                "{} of *.{} in {} frames became {}, in {} ms of encoding",
                bytes(count.raw),
                count.name,
                count.frames,
                bytes(count.encoded),
                count.took.as_millis()
            ),
            gain: format!(
                "{} ms of encoding spared for as much as was written so far, and nothing lost",
                count.took.as_millis()
            ),
            commands,
        })
    }

    /// A chain without compression that files can go through, and what makes it where there is none.
    fn chain_without_compression(&self) -> Option<(String, Vec<String>)> {
        let require = self.host.require();
        let fits = |spec: &&ChainSpec| {
            self.host.chain(&spec.name).is_ok_and(|chain| {
                !chain.provides("compression")
                    && chain.seal_id().is_some()
                    && require.iter().all(|capability| chain.provides(capability))
            })
        };
        let specs = self.host.chain_specs();
        if let Some(spec) = specs.iter().find(fits) {
            return Some((spec.name.clone(), Vec::new()));
        }
        let default = self.host.chain("default").ok()?;
        let kept = default.spec().steps.iter().filter(|step| !self.is_compressor(&step.plugin)).cloned().collect();
        let name = free_name(&specs, "plain");
        Some((name.clone(), vec![self.ctl(&format!("chain new {name} '{}'", ChainSpec::new("", kept)))]))
    }

    fn is_compressor(&self, plugin: &str) -> bool {
        self.host.plugins().iter().any(|known| known.id == plugin && known.provides.contains(&"compression"))
    }

    fn tried(&self, label: Label, chain: &ChainSpec) -> Option<Trial> {
        let samples = self.volume.samples(label);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let oldest = i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - COLD;
        let cold: Vec<_> = samples.iter().filter(|sample| sample.used.secs < oldest).collect();
        // Nearly all of them: one file that somebody looked into doesn't make an archive a workplace.
        if samples.is_empty() || cold.len() * 10 < samples.len() * 9 {
            return None;
        }
        let pieces: Vec<Vec<u8>> = cold.iter().take(TRIED).map(|sample| self.volume.peek(sample.node, PEEK)).collect();
        let encoded = |steps: &[StepSpec]| self.host.trial(steps, &pieces).ok();
        Some(Trial {
            raw: pieces.iter().map(Vec::len).sum(),
            now: encoded(&chain.steps)?,
            harder: encoded(&harder(chain, None))?,
            cold: cold.len(),
            looked_at: samples.len(),
        })
    }

    fn cold(&self, count: &LabelCount, chain: &ChainSpec) -> Option<Advice> {
        let level = level_of(chain)?;
        if count.raw < ENOUGH || !is_text(count) || level >= HARD {
            return None;
        }
        let trial = *self.trials().get(&count.label)?;
        let saved = 1.0 - trial.harder as f64 / trial.now.max(1) as f64;
        if saved < WORTH {
            return None;
        }
        let specs = self.host.chain_specs();
        let steps = harder(chain, Some(&chain.name));
        let mut commands = Vec::new();
        let name = match specs.iter().find(|spec| level_of(spec).is_some_and(|level| level >= HARD)) {
            Some(spec) => spec.name.clone(),
            None => {
                let name = free_name(&specs, "archive");
                commands.push(self.ctl(&format!("chain new {name} '{}'", ChainSpec::new("", steps))));
                name
            }
        };
        commands.push(self.route(&count.name, &name));
        let percent = |part: f64| format!("{:.0} %", part * 100.0);
        Some(Advice {
            kind: "archive",
            title: format!("Compress *.{} harder", count.name),
            evidence: format!(
                "{} of *.{} became {} at level {level}; {} of {} files looked at were neither read nor changed for a day; \
                 a sample of {} became {} and would become {} at level {ARCHIVE}",
                bytes(count.raw),
                count.name,
                bytes(count.encoded),
                trial.cold,
                trial.looked_at,
                bytes(trial.raw as u64),
                bytes(trial.now as u64),
                bytes(trial.harder as u64)
            ),
            gain: format!("{} less stored of such files that are written from then on", percent(saved)),
            commands,
        })
    }

    fn memory(&self) -> Option<Advice> {
        let seen = self.repository.reread();
        let memory = memory_for(&seen, self.memory, self.repository.frame_cache_limit())?;
        if physical().is_some_and(|physical| memory > physical / 2) {
            return None;
        }
        let setting = axiomfs_config::format_bytes(memory);
        let (file, write) = match &self.settings_file {
            Some(file) => {
                // Behind its links, which `sed -i` would replace.
                let real = file.canonicalize().unwrap_or_else(|_| file.clone());
                let real = quoted(&real.to_string_lossy());
                let set = format!("sed -i -e '/^memory:/d' -e '$a memory: {setting}' {real}");
                (file.to_string_lossy().into_owned(), set)
            }
            None => {
                let set = format!("printf 'version: 1\\nmemory: {setting}\\n' > axiomfs.yaml");
                ("axiomfs.yaml".to_owned(), set)
            }
        };
        let mount = self.remount.with_settings(&file);
        Some(Advice {
            kind: "memory",
            title: format!("Give the mount more memory: {setting}"),
            evidence: format!(
                "{} of {} that were fetched and decoded had been in memory before; what is read again and again takes {}, the \
                 cache holds {}",
                bytes(seen.again),
                bytes(seen.all),
                bytes(seen.set),
                bytes(self.repository.frame_cache_limit())
            ),
            gain: format!("{} would not have been fetched and decoded again", bytes(seen.again)),
            commands: vec![write, format!("axiomfs umount {}", self.mountpoint), mount],
        })
    }

    fn rotation(&self, pipeline: &Pipeline) -> Option<Advice> {
        let epoch = self.repository.sealing_epoch();
        let created = UNIX_EPOCH + Duration::from_nanos(u64::try_from(epoch.created_ns).unwrap_or(0));
        let age = SystemTime::now().duration_since(created).ok()?;
        let due = pipeline.policies.rotate.age;
        if age < due {
            return None;
        }
        Some(Advice {
            kind: "rotate",
            title: "Take a new sealing key into use".to_owned(),
            evidence: format!(
                "Epoch {} seals since {} h; policies.rotate.age is {}",
                epoch.number,
                age.as_secs() / 3600,
                format_duration(due)
            ),
            gain: "Who learned the key of today can't read what is sealed from then on".to_owned(),
            commands: vec![self.ctl("key rotate")],
        })
    }

    fn ctl(&self, command: &str) -> String {
        format!("axiomfs ctl {} {command}", self.mountpoint)
    }

    /// The command that sends the ending to `chain`: behind the other routes, or before them where one would catch it.
    fn route(&self, ending: &str, chain: &str) -> String {
        let caught = self.host.routes().explain(probe(ending).as_bytes()).0.is_some();
        let first = if caught { " first" } else { "" };
        self.ctl(&format!("route add match '*.{ending}' {chain}{first}"))
    }

    fn trials(&self) -> std::sync::MutexGuard<'_, HashMap<Label, Trial>> {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name of that ending, which no route is likely to know by itself.
fn probe(ending: &str) -> String {
    format!("some-file.{ending}")
}

fn is_text(count: &LabelCount) -> bool {
    count.raw >= ENOUGH && (count.encoded as f64) < count.raw as f64 * TEXT
}

/// The level of the chain's step that has one.
fn level_of(chain: &ChainSpec) -> Option<i64> {
    chain.steps.iter().flat_map(|step| &step.params).find(|(key, _)| key == "level")?.1.parse().ok()
}

/// The steps of `chain` at the level for archives; where `fallback` is given, a frame that fails takes that chain.
fn harder(chain: &ChainSpec, fallback: Option<&str>) -> Vec<StepSpec> {
    let mut steps = chain.steps.clone();
    for step in steps.iter_mut().filter(|step| step.params.iter().any(|(key, _)| key == "level")) {
        step.params.retain(|(key, _)| key != "adapt");
        for (_, value) in step.params.iter_mut().filter(|(key, _)| key == "level") {
            *value = ARCHIVE.to_string();
        }
        step.on_error = fallback.map_or(OnError::Fail, |name| OnError::Fallback(name.to_owned()));
    }
    steps
}

fn free_name(specs: &[ChainSpec], wanted: &str) -> String {
    let is_free = |name: &String| specs.iter().all(|spec| spec.name != *name);
    let numbered = (2..).map(|number| format!("{wanted}{number}"));
    std::iter::once(wanted.to_owned()).chain(numbered).find(is_free).unwrap_or_default()
}

/// The setting with which what is read again would fit into the cache, if it is worth a word.
fn memory_for(seen: &Reread, memory: u64, cache: u64) -> Option<u64> {
    let worth = seen.again >= FETCHED_AGAIN && seen.again >= seen.all / 4 && seen.set > cache;
    // The cache is a fixed part of the whole; a tenth more, since not only what is read again goes through it.
    let wanted = worth.then(|| memory as f64 * seen.set as f64 / cache.max(1) as f64 * 1.1)?;
    let wanted = (wanted as u64).max(memory + 1).div_ceil(64 << 20) * (64 << 20);
    (wanted <= 1 << 40).then_some(wanted)
}

/// Memory of this machine in bytes, if the kernel says so.
fn physical() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The advice as the command answers it.
pub fn to_json(advice: &[Advice]) -> Value {
    let list: Vec<Value> = advice
        .iter()
        .map(|one| {
            json!({
                "kind": one.kind,
                "title": one.title,
                "evidence": one.evidence,
                "gain": one.gain,
                "commands": one.commands,
            })
        })
        .collect();
    json!({ "ok": true, "advice": list })
}

/// The same for people.
pub fn to_text(reply: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut out = String::new();
    for (number, one) in reply["advice"].as_array().into_iter().flatten().enumerate() {
        out.push_str(&format!("{}. {}\n", number + 1, text(&one["title"])));
        out.push_str(&format!("   Seen: {}\n   Gain: {}\n", text(&one["evidence"]), text(&one["gain"])));
        for command in one["commands"].as_array().into_iter().flatten() {
            out.push_str(&format!("   $ {}\n", text(command)));
        }
    }
    if out.is_empty() { "No advice".to_owned() } else { out.trim_end().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_advised_that_the_read_set_fits_into() {
        let mib = |n: u64| n << 20;
        let seen = |again, all, set| Reread { again: mib(again), all: mib(all), set: mib(set) };
        assert_eq!(memory_for(&seen(31, 60, 100), mib(256), mib(50)), None, "too little");
        assert_eq!(memory_for(&seen(100, 500, 100), mib(256), mib(50)), None, "a fifth only");
        assert_eq!(memory_for(&seen(100, 200, 40), mib(256), mib(50)), None, "it fits, and was read anew for once");
        assert_eq!(memory_for(&seen(100, 200, 100), mib(256), mib(50)), Some(mib(576)));
        assert_eq!(memory_for(&seen(100, 200, 60), mib(256), mib(50)), Some(mib(384)));
    }

    #[test]
    fn a_harder_chain_keeps_the_other_steps() {
        let zstd = StepSpec::new("zstd").with("level", 3).with("adapt", "1..9").on_error(OnError::Skip);
        let chain = ChainSpec::new("default", vec![zstd, StepSpec::new("padme"), StepSpec::new("aes-256-gcm")]);
        let steps = ChainSpec::new("archive", harder(&chain, Some("default")));
        assert_eq!(steps.to_string(), "zstd(level=19,on_error=fallback:default)|padme|aes-256-gcm");
        assert_eq!((level_of(&chain), level_of(&steps)), (Some(3), Some(19)));
        assert_eq!(free_name(&[steps], "archive"), "archive2");
    }

    #[test]
    fn advice_reads_like_a_list() {
        let one = Advice {
            kind: "route",
            title: "Do it".into(),
            evidence: "It is so".into(),
            gain: "Much".into(),
            commands: vec!["axiomfs one".into(), "axiomfs two".into()],
        };
        let text = to_text(&to_json(&[one]));
        assert_eq!(text, "1. Do it\n   Seen: It is so\n   Gain: Much\n   $ axiomfs one\n   $ axiomfs two");
        assert_eq!(to_text(&to_json(&[])), "No advice");
    }
}
