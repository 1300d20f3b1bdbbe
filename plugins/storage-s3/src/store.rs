use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ChecksumMode, Object, ServerSideEncryption, StorageClass};
use axiomfs_api::{Body, LeftOut, ObjectKey, ObjectMeta, Store, StoreError, StoreErrorKind};
use tokio::runtime::Runtime;

use crate::client::Connected;
use crate::limiter::Limiter;
use crate::upload::Source;
use crate::watch::{Patience, Progress, within};
use crate::{S3Options, ServerEncryption, client, errors};

/// A transfer slower than this, in bytes per second, counts as lost, however steadily it flows.
const SLOWEST: u64 = 8 << 10;
/// Bodies up to this are sent from memory and signed with their bytes.
const SIGNED: u64 = 64 << 10;
/// Most names in one answer to a listing, by S3's rules.
const PAGE: usize = 1000;
/// Most answers to one listing: a hundred million names, at 32 MiB a pack more than any server has.
const MOST_PAGES: u32 = 100_000;
/// How long the threads may take to end.
const END: Duration = Duration::from_secs(1);

/// Objects in a bucket, below a prefix.
pub struct S3Store {
    options: S3Options,
    client: Client,
    /// Whether the server is another than Amazon's, by the URL or by AWS's own configuration.
    custom: bool,
    up: Arc<Limiter>,
    down: Arc<Limiter>,
    left_out: LeftOut,
    /// Only empty while the store is dropped.
    runtime: Option<Arc<Runtime>>,
}

/// Without the client, whose form could show more than a log should have.
impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store").field("location", &self.options.location.to_string()).finish_non_exhaustive()
    }
}

impl Drop for S3Store {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take().and_then(Arc::into_inner) {
            runtime.shutdown_timeout(END);
        }
    }
}

impl S3Store {
    /// Starts the threads and finds out the region; asks nothing of the bucket yet.
    ///
    /// # Errors
    /// `Invalid` if the options can't be used.
    pub fn open(options: S3Options) -> Result<Self, StoreError> {
        let runtime = client::runtime()?;
        let Connected { client, custom } = runtime.block_on(client::connect(&options))?;
        let (up, down) = (Limiter::new(options.upload_rate), Limiter::new(options.download_rate));
        Ok(Self {
            client,
            custom,
            up: Arc::new(up),
            down: Arc::new(down),
            left_out: LeftOut::default(),
            runtime: Some(runtime),
            options,
        })
    }

    fn name(&self, key: &ObjectKey) -> String {
        self.options.location.name(key.as_str())
    }

    fn bucket(&self) -> &str {
        &self.options.location.bucket
    }

    /// Drives a request of at most `bytes` either way to its end.
    fn drive<T>(
        &self,
        operation: &'static str,
        object: &str,
        bytes: u64,
        progress: &Progress,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let slow = [&self.options.upload_rate, &self.options.download_rate].into_iter().flatten().min();
        let rate = slow.map_or(SLOWEST, |rate| SLOWEST.min(rate / 64)).max(1);
        let silence = self.options.timeout;
        let patience = Patience { silence, total: silence + Duration::from_secs(bytes / rate) };
        let Some(runtime) = &self.runtime else {
            return Err(StoreError::new(StoreErrorKind::Unavailable, operation, object));
        };
        runtime.block_on(within(patience, progress, call)).unwrap_or_else(|| {
            let reason = format!("The server was silent for {silence:?}");
            Err(StoreError::new(StoreErrorKind::Timeout, operation, object).with_source(reason))
        })
    }

    /// The body, of which `expected` or up to `max` bytes may come.
    async fn receive(
        &self,
        key: &ObjectKey,
        mut body: ByteStream,
        announced: Option<i64>,
        max: u64,
        progress: &Progress,
    ) -> Result<Vec<u8>, StoreError> {
        let announced = announced.and_then(|len| u64::try_from(len).ok());
        if announced.is_some_and(|len| len > max) {
            return Err(too_long(key, max));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(announced.unwrap_or(0)).unwrap_or(0));
        loop {
            let piece = match body.next().await {
                None => break,
                Some(Ok(piece)) => piece,
                Some(Err(error)) => {
                    let reason = errors::words(&error);
                    return Err(StoreError::new(StoreErrorKind::Unavailable, "get", key.as_str()).with_source(reason));
                }
            };
            progress.made();
            if (bytes.len() + piece.len()) as u64 > max {
                return Err(too_long(key, max));
            }
            bytes.extend_from_slice(&piece);
            let pause = self.down.pass(piece.len());
            if !pause.is_zero() {
                progress.paused_for(pause);
                tokio::time::sleep(pause).await;
                progress.made();
            }
        }
        if announced.is_some_and(|len| len != bytes.len() as u64) {
            let reason = "The answer was cut short";
            return Err(StoreError::new(StoreErrorKind::Unavailable, "get", key.as_str()).with_source(reason));
        }
        Ok(bytes)
    }

    fn create(&self, key: &ObjectKey, body: Body<'_>, class: Option<&str>) -> Result<(), StoreError> {
        if !self.options.look_before_create {
            return self.put_object(key, body, true, class);
        }
        match self.stat(key) {
            Ok(_) => Err(StoreError::new(StoreErrorKind::AlreadyExists, "put", key.as_str())),
            Err(error) if error.kind == StoreErrorKind::NotFound => self.put_object(key, body, false, class),
            Err(error) => Err(error),
        }
    }

    fn put_object(&self, key: &ObjectKey, body: Body<'_>, create: bool, class: Option<&str>) -> Result<(), StoreError> {
        let unreadable = |error| StoreError::new(StoreErrorKind::Invalid, "put", key.as_str()).with_source(error);
        let source = Source::new(body).map_err(unreadable)?;
        let (len, crc32) = (source.len, source.crc32);
        let progress = Arc::new(Progress::new());
        let body = match body {
            Body::Bytes(bytes) if len <= SIGNED => ByteStream::from(bytes.to_vec()),
            _ => ByteStream::new(SdkBody::from_body_1_x(source.into_upload(self.up.clone(), progress.clone()))),
        };
        let mut request = self.client.put_object().bucket(self.bucket()).key(self.name(key));
        request =
            request.content_length(i64::try_from(len).unwrap_or(i64::MAX)).checksum_crc32(base64(crc32)).body(body);
        if create {
            request = request.if_none_match("*");
        }
        let request = self.marked(request, class);
        let call = async {
            let sent = request.send().await;
            sent.map(drop).map_err(|error| written(errors::failed("put", key.as_str(), error)))
        };
        self.drive("put", key.as_str(), len, &progress, call).inspect_err(|_| self.up.in_vain(progress.all_sent()))
    }

    /// With the headers that the options ask for.
    fn marked(&self, mut request: PutObjectFluentBuilder, class: Option<&str>) -> PutObjectFluentBuilder {
        if let Some(class) = class {
            request = request.storage_class(StorageClass::from(class));
        }
        match &self.options.encryption {
            None => request,
            Some(ServerEncryption::S3) => request.server_side_encryption(ServerSideEncryption::Aes256),
            Some(ServerEncryption::Kms(key)) => {
                request.server_side_encryption(ServerSideEncryption::AwsKms).set_ssekms_key_id(key.clone())
            }
        }
    }

    /// `error`, unless it says that an object is missing when in truth the bucket is. A request without a body in its
    /// answer can't tell them apart.
    async fn explain(&self, error: StoreError) -> StoreError {
        if error.kind != StoreErrorKind::NotFound {
            return error;
        }
        match self.client.head_bucket().bucket(self.bucket()).send().await {
            Err(other) if errors::status(&other) == Some(404) => self.no_bucket(error),
            _ => error,
        }
    }

    fn no_bucket(&self, error: StoreError) -> StoreError {
        let reason = format!("There is no bucket {}", self.bucket());
        StoreError::new(StoreErrorKind::Invalid, error.operation, error.object).with_source(reason)
    }

    fn check_exists(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<(), StoreError> {
        let size = self.stat(key).map_err(|error| StoreError { operation: "get", ..error })?.len;
        if offset.checked_add(len).is_some_and(|end| end <= size) { Ok(()) } else { Err(ends_before(key, offset, len)) }
    }
}

impl Store for S3Store {
    fn location(&self) -> String {
        self.options.location.to_string()
    }

    /// The server's checksum is compared where it has one.
    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        let progress = Progress::new();
        let request = self.client.get_object().bucket(self.bucket()).key(self.name(key));
        let call = async {
            let answer = request.checksum_mode(ChecksumMode::Enabled).send().await;
            let answer = answer.map_err(|error| errors::failed("get", key.as_str(), error))?;
            progress.made();
            self.receive(key, answer.body, answer.content_length, max, &progress).await
        };
        self.drive("get", key.as_str(), max, &progress, call)
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let Some(end) = end.filter(|_| len > 0) else {
            return self.check_exists(key, offset, len).map(|()| Vec::new());
        };
        let progress = Progress::new();
        let request = self.client.get_object().bucket(self.bucket()).key(self.name(key));
        let call = async {
            let answer = request.range(format!("bytes={offset}-{}", end - 1)).send().await;
            let answer = answer.map_err(|error| errors::failed("get", key.as_str(), error))?;
            progress.made();
            check_range(&answer, key, offset, len)?;
            self.receive(key, answer.body, answer.content_length, len, &progress).await
        };
        let bytes = self.drive("get", key.as_str(), len, &progress, call)?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(ends_before(key, offset, len)) }
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let progress = Progress::new();
        let request = self.client.head_object().bucket(self.bucket()).key(self.name(key));
        let call = async {
            match request.send().await {
                Ok(answer) => Ok(u64::try_from(answer.content_length.unwrap_or(0)).unwrap_or(0)),
                Err(error) => Err(self.explain(errors::failed("stat", key.as_str(), error)).await),
            }
        };
        let len = self.drive("stat", key.as_str(), 0, &progress, call)?;
        Ok(ObjectMeta { key: key.clone(), len })
    }

    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.create(key, body, self.options.metadata_class.as_deref())
    }

    fn put_new_data(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.create(key, body, self.options.data_class.as_deref())
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.put_object(key, body, false, self.options.metadata_class.as_deref())
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let request = self.client.delete_object().bucket(self.bucket()).key(self.name(key));
        let call = async {
            match request.send().await {
                Ok(_) => Ok(()),
                Err(error) => match errors::failed("delete", key.as_str(), error) {
                    error if error.kind == StoreErrorKind::NotFound => Ok(()),
                    error => Err(error),
                },
            }
        };
        self.drive("delete", key.as_str(), 0, &Progress::new(), call)
    }

    /// Amazon lists in the order of bytes. Other servers may walk directories (`a/b` before `a-b`), also when they are to
    /// begin after a name: theirs are read whole and sorted here, which costs a request for every thousand names.
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        let is_sorted = !self.custom;
        let full = self.options.location.name(prefix);
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut start = after.filter(|_| is_sorted).map(|after| self.options.location.name(after));
        let mut token = None;
        if limit == 0 {
            return Ok(found);
        }
        for page in 0.. {
            if page == MOST_PAGES {
                let reason = format!("The server's listing has no end after {MOST_PAGES} pages");
                return Err(StoreError::new(StoreErrorKind::Corrupt, "list", prefix).with_source(reason));
            }
            let wanted = if is_sorted { (limit - found.len()).min(PAGE) } else { PAGE };
            let request = self.client.list_objects_v2().bucket(self.bucket()).prefix(&full);
            let request = request.max_keys(i32::try_from(wanted).unwrap_or(i32::MAX));
            let asked = token.take();
            let request = request.set_start_after(start.take()).set_continuation_token(asked.clone());
            let call = async { request.send().await.map_err(|error| errors::failed("list", prefix, error)) };
            let answer = self.drive("list", prefix, 1 << 20, &Progress::new(), call)?;
            let names = answer.contents.unwrap_or_default();
            let ours = names.iter().filter_map(|object| self.meta(object));
            found.extend(ours.filter(|meta| after.is_none_or(|after| meta.key.as_str() > after)));
            // However many names there are, no more are kept than were asked for, and a page.
            if found.len() > limit {
                keep_first(&mut found, limit);
            }
            let next = answer.next_continuation_token;
            if next.is_some() && next == asked {
                let reason = "The server goes on from the same name again and again";
                return Err(StoreError::new(StoreErrorKind::Corrupt, "list", prefix).with_source(reason));
            }
            token = next;
            if token.is_none() || answer.is_truncated != Some(true) || (is_sorted && found.len() >= limit) {
                break;
            }
        }
        keep_first(&mut found, limit);
        Ok(found)
    }

    fn left_out(&self) -> Vec<String> {
        self.left_out.names()
    }

    fn bytes_sent(&self) -> Option<u64> {
        Some(self.up.passed())
    }
}

fn keep_first(found: &mut Vec<ObjectMeta>, limit: usize) {
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    found.truncate(limit);
}

impl S3Store {
    /// `None` for what is none of our objects.
    fn meta(&self, object: &Object) -> Option<ObjectMeta> {
        let name = object.key()?;
        let prefix = &self.options.location.prefix;
        let name = if prefix.is_empty() { name } else { name.strip_prefix(prefix.as_str())?.strip_prefix('/')? };
        let Ok(key) = ObjectKey::new(name) else {
            self.left_out.note(name);
            return None;
        };
        Some(ObjectMeta { key, len: u64::try_from(object.size()?).ok()? })
    }
}

/// A server may answer a range with the whole object, or with what there is of the range.
fn check_range(answer: &GetObjectOutput, key: &ObjectKey, offset: u64, len: u64) -> Result<(), StoreError> {
    let wrong = |reason: String| StoreError::new(StoreErrorKind::Invalid, "get", key.as_str()).with_source(reason);
    let Some(range) = answer.content_range() else {
        return Err(wrong("The server does not know ranges".to_owned()));
    };
    // `bytes 0-99/1234`
    let parts = range.strip_prefix("bytes ").and_then(|range| range.split_once('/')?.0.split_once('-'));
    let numbers = parts.and_then(|(from, to)| Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?)));
    match numbers {
        Some((from, to)) if from == offset && to.checked_sub(from) == Some(len - 1) => Ok(()),
        Some((from, to)) if from == offset && to < offset + len => Err(ends_before(key, offset, len)),
        _ => Err(wrong(format!("The server answered with {range}"))),
    }
}

fn too_long(key: &ObjectKey, max: u64) -> StoreError {
    let reason = format!("It is longer than the {max} bytes it may have");
    StoreError::new(StoreErrorKind::Corrupt, "get", key.as_str()).with_source(reason)
}

fn ends_before(key: &ObjectKey, offset: u64, len: u64) -> StoreError {
    let reason = format!("It ends before the {len} bytes at {offset}");
    StoreError::new(StoreErrorKind::Corrupt, "get", key.as_str()).with_source(reason)
}

/// A put that finds nothing has no bucket.
fn written(mut error: StoreError) -> StoreError {
    if matches!(error.kind, StoreErrorKind::NotFound) {
        error.kind = StoreErrorKind::Invalid;
    }
    error
}

/// Four bytes as S3 writes checksums.
fn base64(crc32: u32) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(crc32) << 16;
    let mut text: String = (0..6).map(|i| char::from(DIGITS[(bits >> (42 - 6 * i)) as usize & 63])).collect();
    text.push_str("==");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_written_as_s3_wants_them() {
        assert_eq!(base64(0), "AAAAAA==");
        assert_eq!(base64(0xcbf4_3926), "y/Q5Jg==", "the check value of CRC-32");
    }
}
