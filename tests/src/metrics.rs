//! Reads the text form of Prometheus, as far as tests need it.

use crate::repo::TestRepo;

/// The metrics of a mount at one moment.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// What the mount's own file says.
    ///
    /// # Panics
    /// When it can't be read.
    pub fn of(repo: &TestRepo) -> Metrics {
        Metrics(std::fs::read_to_string(repo.mnt.join(".axiomfs/metrics")).expect("metrics can be read"))
    }

    /// The text itself.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// All samples of the series `name`, with their labels as they stand between the braces.
    pub fn series(&self, name: &str) -> Vec<(&str, f64)> {
        let sample = |line| -> Option<(&str, f64)> {
            let (series, value) = str::rsplit_once(line, ' ')?;
            let (found, labels) = series.split_once('{').map_or((series, ""), |(n, l)| (n, l.trim_end_matches('}')));
            (found == name).then(|| (labels, value.parse().expect("a number")))
        };
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
    }

    /// The one sample of `name`.
    ///
    /// # Panics
    /// When there is none, or more than one.
    pub fn value(&self, name: &str) -> f64 {
        match self.series(name)[..] {
            [(_, value)] => value,
            ref other => panic!("{name} has {} samples", other.len()),
        }
    }

    /// The sum of all samples of `name`.
    pub fn sum(&self, name: &str) -> f64 {
        self.series(name).iter().map(|(_, value)| value).sum()
    }

    /// The upper bound, in the histogram's unit, under which the part `q` of all observations of `family` lies.
    ///
    /// # Panics
    /// When the histogram is empty.
    pub fn quantile(&self, family: &str, q: f64) -> f64 {
        let count = self.sum(&format!("{family}_count"));
        assert!(count > 0.0, "{family} has seen nothing");
        let buckets = self.series(&format!("{family}_bucket"));
        let reached = buckets.iter().find(|(_, below)| *below >= q * count).expect("the last bucket has all");
        let bound = reached.0.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a bound");
        if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a number") }
    }
}
