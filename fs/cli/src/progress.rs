//! Bars on a terminal for what takes longer than a second; nothing elsewhere.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Nothing is drawn before this: what is quick needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// A bar that appears when the work takes long.
pub struct Bar {
    bar: ProgressBar,
    started: Instant,
    shown: bool,
}

impl Bar {
    /// `quiet` bars never appear. Where standard error is no terminal, none does.
    pub fn new(message: &str, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_message(message.to_owned());
        Self { bar, started: Instant::now(), shown: quiet }
    }

    /// Says how far it is, in bytes; without a total the bar only turns.
    pub fn set(&mut self, done: u64, total: Option<u64>) {
        if !self.shown && self.started.elapsed() >= PATIENCE {
            self.shown = true;
            let template = match total {
                Some(_) => "{msg} [{bar:32}] {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left",
                None => "{spinner} {msg}, {elapsed}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style.progress_chars("=> "));
            }
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if let Some(total) = total {
            self.bar.set_length(total);
            self.bar.set_position(done.min(total));
        }
        self.bar.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Runs `work` on a thread and, until it ends, asks `look` for (bytes done, bytes in total).
pub fn watch<T: Send>(
    message: &str,
    quiet: bool,
    work: impl FnOnce() -> T + Send,
    mut look: impl FnMut() -> (u64, Option<u64>),
) -> T {
    let mut bar = Bar::new(message, quiet);
    thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        let worker = scope.spawn(move || {
            // Dropped at the end of the work, also by a panic; that wakes the loop below.
            let _done = done;
            work()
        });
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(TICK) {
            let (bytes, total) = look();
            bar.set(bytes, total);
        }
        match worker.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_the_work_comes_back() {
        let mut looks = 0;
        let value = watch(
            "x",
            true,
            || {
                thread::sleep(Duration::from_millis(350));
                7
            },
            || {
                looks += 1;
                (looks, Some(10))
            },
        );
        assert_eq!(value, 7);
        assert!(looks >= 2, "{looks}");
    }
}
