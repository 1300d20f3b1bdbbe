//! From options to a client of the SDK, and the threads that drive it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use axiomfs_api::{StoreError, StoreErrorKind};
use tokio::runtime::{Builder, Runtime};

use crate::S3Options;

/// Threads that drive all requests: encryption of a connection is what they do at most.
const THREADS: usize = 2;
/// How long they are kept: less than the twenty seconds after which Amazon closes them.
const IDLE_TIME: Duration = Duration::from_secs(15);
/// Where a custom server's region is not told, it does not matter.
const ANY_REGION: &str = "us-east-1";

pub(crate) fn runtime() -> Result<Arc<Runtime>, StoreError> {
    let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("s3").enable_all().build();
    runtime.map(Arc::new).map_err(|error| invalid("The threads of the S3 client could not be started", error))
}

/// A client, and what its server is.
pub(crate) struct Connected {
    pub client: Client,
    /// Whether it is another server than Amazon's.
    pub custom: bool,
}

/// A client with credentials from the SDK's default chain: environment, profile, SSO, web identity, container, instance.
pub(crate) async fn connect(options: &S3Options) -> Result<Connected, StoreError> {
    let location = &options.location;
    let http = http_client(options.ca_bundle.as_deref())?;
    let shared = load(options, http).await;
    let endpoint = location.endpoint.clone().or_else(|| configured_endpoint(&shared));
    let region = shared.region().cloned().unwrap_or_else(|| Region::new(ANY_REGION));
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .region(region)
        .force_path_style(location.path_style.unwrap_or(endpoint.is_some()))
        // Checksums are given with each upload, and checked where they are asked for.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    config.set_endpoint_url(endpoint.clone());
    Ok(Connected { client: Client::from_conf(config.build()), custom: endpoint.is_some() })
}

/// What environment and files say, in the order of the AWS tools. Nothing is asked over the network for a custom server.
async fn load(options: &S3Options, http: SharedHttpClient) -> SdkConfig {
    let location = &options.location;
    let loader = || {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http.clone())
            // Repeating is done above the store, the same for all stores and within one bound.
            .retry_config(RetryConfig::disabled())
            // The store watches progress itself: a limit of bandwidth must not look like a stalled server.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(options.timeout).build());
        if let Some(profile) = &location.profile {
            loader = loader.profile_name(profile);
        }
        loader
    };
    if let Some(region) = &location.region {
        return loader().region(Region::new(region.clone())).load().await;
    }
    // Asking an instance's metadata service for a region, as the default chain does, takes seconds where there is none.
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &location.profile {
        profile = profile.profile_name(name);
    }
    let told = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(profile.build());
    let shared = loader().region(told.or_else(Region::new(ANY_REGION))).load().await;
    if location.endpoint.is_some() || configured_endpoint(&shared).is_some() { shared } else { loader().load().await }
}

/// The endpoint that `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or the profile's `endpoint_url` name.
fn configured_endpoint(shared: &SdkConfig) -> Option<String> {
    let key =
        ServiceConfigKey::builder().service_id("S3").env("AWS_ENDPOINT_URL").profile("endpoint_url").build().ok()?;
    let of_service = shared.service_config().and_then(|config| config.load_config(key));
    of_service.or_else(|| shared.endpoint_url().map(str::to_owned))
}

/// Connections with the system's certificate authorities, and those of `ca_bundle` beside them.
fn http_client(ca_bundle: Option<&Path>) -> Result<SharedHttpClient, StoreError> {
    let mut roots = TrustStore::default();
    if let Some(path) = ca_bundle {
        let pem = std::fs::read(path).map_err(|error| invalid(&format!("Could not read {}", path.display()), error))?;
        if !pem.windows(27).any(|window| window == b"-----BEGIN CERTIFICATE-----") {
            let reason = format!("{} holds no certificate in PEM form", path.display());
            return Err(StoreError::new(StoreErrorKind::Invalid, "open", "ca_bundle").with_source(reason));
        }
        roots = roots.with_pem_certificate(pem);
    }
    let context = TlsContext::builder().with_trust_store(roots).build();
    let context = context.map_err(|error| invalid("The certificates could not be used", error))?;
    Ok(aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(IDLE_TIME)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}

fn invalid(what: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::new(StoreErrorKind::Invalid, "open", "the S3 client").with_source(format!("{what}: {error}"))
}
