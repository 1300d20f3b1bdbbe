use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// When a request last made progress: bytes sent or received.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    /// Milliseconds after `begun`.
    last: AtomicU64,
    /// Bytes of a body that were sent.
    sent: AtomicU64,
}

impl Progress {
    pub fn new() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0), sent: AtomicU64::new(0) }
    }

    pub fn made(&self) {
        self.paused_for(Duration::ZERO);
    }

    /// Bytes flowed, and none do for so long, by our own wish: that is no silence of the server.
    pub fn paused_for(&self, pause: Duration) {
        let until = u64::try_from(self.begun.elapsed().saturating_add(pause).as_millis()).unwrap_or(u64::MAX);
        self.last.store(until, Ordering::Relaxed);
    }

    /// Bytes of the body were sent.
    pub fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All bytes of the body that were sent.
    pub fn all_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Without any progress.
    pub silence: Duration,
    /// Altogether.
    pub total: Duration,
}

/// The answer, or nothing if it did not come in time. A transfer may take long as long as bytes flow.
pub(crate) async fn within<T>(patience: Patience, progress: &Progress, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let end = progress.begun + patience.total;
    loop {
        let until = (progress.last() + patience.silence).min(end);
        match timeout_at(until, call.as_mut()).await {
            Ok(answer) => return Some(answer),
            Err(_) if (progress.last() + patience.silence).min(end) <= Instant::now() => return None,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(call: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap().block_on(call)
    }

    #[test]
    fn progress_keeps_a_request_alive_and_silence_or_the_end_stops_it() {
        let patience = Patience { silence: Duration::from_millis(100), total: Duration::from_secs(1) };
        let steps = |count: u32| async move {
            let progress = Progress::new();
            let call = async {
                for _ in 0..count {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    progress.made();
                }
            };
            within(patience, &progress, call).await
        };
        assert_eq!(run(steps(10)), Some(()));
        assert_eq!(run(steps(u32::MAX)), None, "the whole has an end");
        let progress = Progress::new();
        let pausing = async {
            for _ in 0..2 {
                let pause = Duration::from_millis(300);
                progress.paused_for(pause);
                tokio::time::sleep(pause).await;
                progress.made();
            }
        };
        assert_eq!(run(within(patience, &progress, pausing)), Some(()), "a pause of our own is no silence");
        let progress = Progress::new();
        let begun = std::time::Instant::now();
        assert_eq!(run(within(patience, &progress, std::future::pending::<()>())), None);
        assert!(begun.elapsed() < Duration::from_millis(900), "silence ends sooner");
    }
}
