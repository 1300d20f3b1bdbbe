use std::fmt;

use crate::HostError;

/// Most chains at the same time, and most steps of one, its fallbacks not counted. Settings hold as many, so that what is shown of them
/// can be written back.
pub const MAX_CHAINS: usize = 256;
/// See [`MAX_CHAINS`].
pub const MAX_CHAIN_STEPS: usize = 16;

/// What happens to a frame when a step fails on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum OnError {
    /// The frame fails.
    #[default]
    Fail,
    /// The frame goes on without this step; only for steps whose descriptor allows it.
    Skip,
    /// The frame is encoded anew by the chain of this name.
    Fallback(String),
}

impl fmt::Display for OnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fail => f.write_str("fail"),
            Self::Skip => f.write_str("skip"),
            Self::Fallback(chain) => write!(f, "fallback:{chain}"),
        }
    }
}

/// One step as somebody asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSpec {
    /// The plugin's id.
    pub plugin: String,
    /// Its parameters, in the order given.
    pub params: Vec<(String, String)>,
    /// What to do when it fails.
    pub on_error: OnError,
}

impl StepSpec {
    /// A step without parameters.
    pub fn new(plugin: impl Into<String>) -> Self {
        Self { plugin: plugin.into(), params: Vec::new(), on_error: OnError::default() }
    }

    /// Adds a parameter.
    pub fn with(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        self.params.push((key.into(), value.to_string()));
        self
    }

    /// Sets what to do when it fails.
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }
}

/// As in a control command: `zstd(level=3,on_error=skip)`.
impl fmt::Display for StepSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plugin)?;
        let mut params = self.params.clone();
        if self.on_error != OnError::Fail {
            params.push(("on_error".into(), self.on_error.to_string()));
        }
        if !params.is_empty() {
            let list: Vec<String> = params.iter().map(|(k, v)| format!("{k}={v}")).collect();
            write!(f, "({})", list.join(","))?;
        }
        Ok(())
    }
}

/// A chain as somebody asked for it: transforms in order, then the seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSpec {
    /// Its name: `default` is the one for everything that no route sends elsewhere.
    pub name: String,
    /// Its steps in encoding order.
    pub steps: Vec<StepSpec>,
}

impl ChainSpec {
    /// A chain of `steps`.
    pub fn new(name: impl Into<String>, steps: Vec<StepSpec>) -> Self {
        Self { name: name.into(), steps }
    }
}

/// Whether there are not too many chains, nor steps in one.
///
/// # Errors
/// [`HostError::Order`].
pub(crate) fn check_counts(chains: &[ChainSpec]) -> Result<(), HostError> {
    let too_many = |reason, what| Err(HostError::Order { reason, hint: format!("Use fewer {what}") });
    if chains.len() > MAX_CHAINS {
        return too_many(format!("There may be {MAX_CHAINS} chains at most"), "chains");
    }
    match chains.iter().find(|chain| chain.steps.len() > MAX_CHAIN_STEPS) {
        Some(chain) => too_many(format!("Chain {} has more than {MAX_CHAIN_STEPS} steps", chain.name), "steps"),
        None => Ok(()),
    }
}

/// The steps as in a control command: `zstd(level=3)|aes-256-gcm`.
impl fmt::Display for ChainSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.steps.iter().map(StepSpec::to_string).collect();
        f.write_str(&steps.join("|"))
    }
}
