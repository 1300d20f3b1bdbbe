use std::time::Duration;

use axiomfs_api::PluginError;
use thiserror::Error;

/// Why the host could not build, change or run a chain.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// No chain of that name.
    #[error("There is no chain {name:?}; there are: {known}")]
    UnknownChain {
        /// What was asked for.
        name: String,
        /// The chains there are.
        known: String,
    },
    /// No route of that number.
    #[error("There is no route {number}; there are {count}")]
    UnknownRoute {
        /// What was asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// A chain's name is not a plain word.
    #[error("Chain name {name:?} must be 1 to 32 of a-z, 0-9, - and _")]
    BadName {
        /// What was given.
        name: String,
    },
    /// Two chains have one name, or one chain has a plugin twice.
    #[error("{what} {name} stands there twice")]
    Duplicate {
        /// `Chain` or `Plugin`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// No plugin of that id is compiled in.
    #[error("There is no plugin {plugin:?}; there are: {known}")]
    UnknownPlugin {
        /// What was asked for.
        plugin: String,
        /// The plugins there are.
        known: String,
    },
    /// The plugin is compiled in but unloaded.
    #[error("Plugin {plugin} is not loaded")]
    NotLoaded {
        /// Its id.
        plugin: String,
    },
    /// The chain does not have that step.
    #[error("Chain {chain} has no step {plugin}; it is {steps}")]
    NotInChain {
        /// The chain.
        chain: String,
        /// The step.
        plugin: String,
        /// Its steps.
        steps: String,
    },
    /// A frame was written by a plugin that is not here.
    #[error("Decoding needs plugin {plugin} with format {format}, which is not in this build or not loaded")]
    MissingPlugin {
        /// Its id.
        plugin: String,
        /// The format number.
        format: u16,
    },
    /// A plugin refused its parameters or could not start.
    #[error("Could not set up plugin {plugin}")]
    Setup {
        /// Its id.
        plugin: String,
        /// Its own words.
        #[source]
        source: Box<PluginError>,
    },
    /// A plugin did not start in time.
    #[error("Plugin {plugin} did not start within {bound:?}")]
    InitTimeout {
        /// Its id.
        plugin: String,
        /// The time it had.
        bound: Duration,
    },
    /// A plugin did not end its frames in time, so it was not unloaded.
    #[error("Plugin {plugin} did not end the frames that are in it within {bound:?}")]
    UnloadTimeout {
        /// Its id.
        plugin: String,
        /// The time it had.
        bound: Duration,
    },
    /// A plugin made wrong frames or broke a bound.
    #[error("Plugin {plugin} is not trusted any more: {reason}")]
    Distrusted {
        /// Its id.
        plugin: String,
        /// What it did.
        reason: String,
    },
    /// The steps can't stand in this order, or not together.
    #[error("{reason}")]
    Order {
        /// Which rule is broken, in words.
        reason: String,
        /// What would be right.
        hint: String,
    },
    /// A step needs something that no other step brings.
    #[error("Plugin {plugin} needs {capability} in its chain; provided by: {providers}")]
    Requirement {
        /// Whose requirement.
        plugin: String,
        /// What is missing.
        capability: String,
        /// The plugins that would bring it.
        providers: String,
    },
    /// The settings demand something that the chain lacks.
    #[error("Chain {chain} lacks {capability}, which the settings require; provided by: {providers}")]
    Policy {
        /// The chain.
        chain: String,
        /// What is missing.
        capability: String,
        /// The plugins that would bring it.
        providers: String,
    },
    /// The command weakens or destroys and lacks the right token.
    #[error("{what} needs confirm=TOKEN; the token is in the status of this mount")]
    Unconfirmed {
        /// What was asked for.
        what: String,
    },
    /// A step can't have this error strategy.
    #[error("Step {plugin} can't have on_error {strategy}: {reason}")]
    Strategy {
        /// The step.
        plugin: String,
        /// The strategy asked for.
        strategy: String,
        /// Why not.
        reason: String,
    },
    /// A worker would need more memory than it may have.
    #[error("Plugin {plugin} needs {needs} bytes for a worker; {bound} are allowed")]
    Memory {
        /// Its id.
        plugin: String,
        /// What it says it needs.
        needs: usize,
        /// The setting.
        bound: usize,
    },
    /// A new chain did not give back what it was given.
    #[error("Chain {chain} failed its self-test: {reason}")]
    SelfTest {
        /// The chain.
        chain: String,
        /// What went wrong.
        reason: String,
    },
    /// Another change of the chains is being made.
    #[error("Another change of the chains is being made")]
    SwapRunning,
    /// The plugin is in use.
    #[error("Plugin {plugin} is in use: {reason}")]
    InUse {
        /// Its id.
        plugin: String,
        /// By what.
        reason: String,
    },
    /// A route's pattern, directory or chain is not usable.
    #[error("Route {route} is not usable: {reason}")]
    BadRoute {
        /// The route in words.
        route: String,
        /// Why.
        reason: String,
    },
    /// A setting is out of its bounds.
    #[error("Limit {limit} must be {expected}, not {value}")]
    BadLimit {
        /// The setting.
        limit: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Stored descriptor bytes are not what a chain writes.
    #[error("Chain descriptor is damaged: {reason}")]
    BadDescriptor {
        /// Which rule is broken.
        reason: &'static str,
    },
    /// A frame's record names steps that its chain does not have.
    #[error("Frame names steps {applied:#x}, its chain has {steps}")]
    BadSteps {
        /// The frame's bit mask.
        applied: u32,
        /// How many steps the chain has.
        steps: usize,
    },
    /// A frame is longer than any frame may be.
    #[error("Frame of {len} bytes is longer than the {max} a frame may have")]
    FrameTooLarge {
        /// Its length.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A step failed to encode and its strategy is to fail.
    #[error("Step {plugin} of chain {chain} could not encode a frame")]
    Encode {
        /// The chain.
        chain: String,
        /// The step.
        plugin: String,
        /// Its own words.
        #[source]
        source: Box<PluginError>,
    },
    /// An encoded frame did not decode to what went in.
    #[error("Chain {chain} encoded a frame that does not decode to what went in")]
    Verify {
        /// The chain.
        chain: String,
    },
    /// A frame could not be decoded.
    #[error("Step {plugin} could not decode a frame")]
    Decode {
        /// The step.
        plugin: String,
        /// Its own words.
        #[source]
        source: Box<PluginError>,
    },
}

impl HostError {
    /// A short, stable word for programs.
    pub fn code(&self) -> &'static str {
        self.classify().0
    }

    /// The name of the errno that the writer of a control file gets.
    pub fn errno_name(&self) -> &'static str {
        self.classify().1
    }

    /// What to do about it, or nothing.
    pub fn hint(&self) -> String {
        match self {
            Self::Order { hint, .. } => hint.clone(),
            Self::Requirement { providers, .. } | Self::Policy { providers, .. } => format!("Add one of: {providers}"),
            Self::SwapRunning => "Try again in a moment".into(),
            Self::Unconfirmed { .. } => "Append confirm=TOKEN with the token from status".into(),
            Self::NotLoaded { plugin } => format!("plugin load {plugin}"),
            Self::Distrusted { plugin, .. } => format!("plugin load {plugin} trusts it again"),
            Self::InitTimeout { .. } | Self::UnloadTimeout { .. } => "Nothing was changed; try again".into(),
            Self::UnknownPlugin { known, .. } => format!("Use one of: {known}"),
            Self::UnknownChain { known, .. } => format!("Use one of: {known}"),
            Self::UnknownRoute { .. } => "See route list".into(),
            Self::NotInChain { chain, .. } => format!("See chain show {chain}"),
            Self::Duplicate { .. } => "Leave one of them out".into(),
            Self::BadName { .. } => "Choose another name".into(),
            Self::MissingPlugin { plugin, .. } => format!("plugin load {plugin}, or a build that has it"),
            Self::Setup { source, .. } => match &**source {
                PluginError::UnknownParameter { known, .. } => format!("It has: {known}"),
                PluginError::BadParameter { key, expected, .. } => format!("{key} must be {expected}"),
                _ => "See the events of this mount".into(),
            },
            Self::Strategy { .. } => "Use on_error=fail, or another chain".into(),
            Self::SelfTest { .. } => "Leave the plugin out; its frames could not be read back".into(),
            Self::InUse { plugin, .. } => {
                format!("Take {plugin} out of the chains first; what is stored may still need it")
            }
            Self::BadRoute { .. } => "Correct the route; nothing was changed".into(),
            Self::BadLimit { expected, .. } => format!("Use {expected}"),
            Self::Memory { .. } => "Raise limits.plugin_memory".into(),
            Self::Encode { .. } | Self::Verify { .. } => {
                "Use on_error=skip or fallback:CHAIN, or leave the step out".into()
            }
            Self::BadDescriptor { .. } | Self::BadSteps { .. } | Self::FrameTooLarge { .. } | Self::Decode { .. } => {
                String::new()
            }
        }
    }

    fn classify(&self) -> (&'static str, &'static str) {
        match self {
            Self::UnknownChain { .. } | Self::UnknownPlugin { .. } | Self::NotInChain { .. } => ("UNKNOWN", "ENOENT"),
            Self::UnknownRoute { .. } => ("UNKNOWN", "ENOENT"),
            Self::NotLoaded { .. } | Self::MissingPlugin { .. } => ("NOT_LOADED", "ENOENT"),
            Self::BadName { .. } | Self::Duplicate { .. } | Self::Strategy { .. } => ("INVALID", "EINVAL"),
            Self::Setup { source, .. } => match **source {
                PluginError::UnknownParameter { .. } | PluginError::BadParameter { .. } => ("PARAMETER", "EINVAL"),
                _ => ("SETUP", "EIO"),
            },
            Self::InitTimeout { .. } | Self::UnloadTimeout { .. } => ("TIMEOUT", "ETIMEDOUT"),
            Self::Distrusted { .. } => ("DISTRUSTED", "EILSEQ"),
            Self::Order { .. } => ("ORDER", "EINVAL"),
            Self::Requirement { .. } => ("MISSING", "EINVAL"),
            Self::BadRoute { .. } => ("ROUTE", "EINVAL"),
            Self::BadLimit { .. } => ("LIMIT", "EINVAL"),
            Self::Policy { .. } => ("POLICY", "EPERM"),
            Self::Unconfirmed { .. } => ("CONFIRM", "EPERM"),
            Self::Memory { .. } => ("MEMORY", "ENOMEM"),
            Self::SelfTest { .. } => ("SELF_TEST", "EILSEQ"),
            Self::SwapRunning | Self::InUse { .. } => ("BUSY", "EBUSY"),
            Self::BadDescriptor { .. } | Self::BadSteps { .. } | Self::FrameTooLarge { .. } => ("DAMAGED", "EIO"),
            Self::Encode { .. } | Self::Verify { .. } | Self::Decode { .. } => ("FRAME", "EIO"),
        }
    }
}
