use std::os::fd::AsFd;
use std::sync::atomic::AtomicUsize;

use super::*;

fn is_nonblocking(device: &impl AsFd) -> bool {
    OFlag::from_bits_retain(fcntl(device, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
}

/// Makes requests for `time`; each takes as long as `cost` says, given whether the reader polls. Tells how many
/// were made while it did, and while it did not.
fn requests(pacer: &Pacer, device: &impl AsFd, time: Duration, cost: impl Fn(bool) -> Duration) -> [usize; 2] {
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let begun = Instant::now();
    while begun.elapsed() < time {
        let polls = is_nonblocking(device);
        pacer.begin();
        let request = Instant::now();
        while request.elapsed() < cost(polls) {
            std::hint::spin_loop();
        }
        pacer.end();
        counts[usize::from(polls)].fetch_add(1, Ordering::Relaxed);
    }
    counts.map(AtomicUsize::into_inner)
}

fn blocks_soon(device: &impl AsFd) -> bool {
    let begun = Instant::now();
    while is_nonblocking(device) {
        if begun.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// They measure how fast they are, so one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    lock(&ALONE)
}

// A copy of a descriptor shares its flags: any descriptor stands for the one of FUSE.

#[test]
fn polls_while_requests_are_dense_and_stops_when_they_end() {
    let _alone = alone();
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pacer = Pacer::new(Duration::from_millis(1));
    pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
    assert!(!is_nonblocking(&read), "nothing polls before the first request");
    let (begun, mut polled) = (Instant::now(), 0);
    while polled == 0 && begun.elapsed() < Duration::from_secs(20) {
        [_, polled] = requests(&pacer, &read, Duration::from_millis(10), |_| Duration::from_micros(20));
    }
    assert!(polled > 0);
    assert!(blocks_soon(&read), "still polling without requests");
    pacer.stop();
}

#[test]
fn a_cpu_is_kept_awake_only_where_there_are_two_and_while_requests_come() {
    let _alone = alone();
    // On a machine with more of them none is kept, whatever is said here.
    let two = Keeper::start(Arc::default()).is_some();
    let cpus_of = |thread| rustix::thread::sched_getaffinity(thread).unwrap();
    let free = cpus_of(None);
    let other = Other::start(|| ());
    for (cpus, is_kept) in [(2, two), (4, false)] {
        let (read, _write) = nix::unistd::pipe().unwrap();
        // Long enough that some requests are made in each on a busy machine, too.
        let pacer = Pacer::new(Duration::from_millis(100));
        pacer.start_with(read.try_clone().unwrap(), cpus, || None).unwrap();
        let decoder = Other::start(pacer.decoder());
        let keeps = || pacer.shared.kept.on.load(Ordering::Relaxed);
        let (begun, mut kept) = (Instant::now(), false);
        while !kept && begun.elapsed() < if is_kept { Duration::from_secs(20) } else { Duration::from_secs(1) } {
            requests(&pacer, &read, Duration::from_millis(10), |_| Duration::from_micros(20));
            kept = keeps();
        }
        assert_eq!(kept, is_kept, "{cpus} CPUs");
        if kept {
            // The reader has one CPU, another thread the one that is kept awake, and one that decodes both.
            requests(&pacer, &read, Duration::from_millis(10), |_| Duration::from_micros(20));
            let both = [None, Some(other.number)].map(cpus_of);
            assert!(!keeps() || both.iter().all(|cpus| cpus.count() == 1) && both[0] != both[1], "{both:?}");
            assert_eq!(cpus_of(Some(decoder.number)), free, "it waits for one CPU while there is room on the other");
        }
        assert!(blocks_soon(&read));
        let begun = Instant::now();
        while keeps() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!keeps(), "a CPU is kept awake for nobody");
        pacer.stop();
        assert_eq!(cpus_of(None), free, "the reader is left bound to a CPU");
        assert_eq!(cpus_of(Some(other.number)), free, "another thread is left bound to a CPU");
    }
}

/// As at an unmount: the loop that reads requests ends first.
#[test]
fn a_reader_that_has_ended_leaves_no_thread_bound() {
    let _alone = alone();
    if Keeper::start(Arc::default()).is_none() {
        return;
    }
    let free = rustix::thread::sched_getaffinity(None).unwrap();
    let other = Other::start(|| ());
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pacer = Pacer::new(Duration::from_millis(100));
    pacer.start_with(read.try_clone().unwrap(), 2, || None).unwrap();
    let begun = Instant::now();
    let keeps = || pacer.shared.kept.on.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !keeps() && begun.elapsed() < Duration::from_secs(20) {
                requests(&pacer, &read, Duration::from_millis(10), |_| Duration::from_micros(20));
            }
        });
    });
    assert!(keeps());
    pacer.stop();
    assert_eq!(rustix::thread::sched_getaffinity(Some(other.number)).unwrap(), free);
}

/// A thread that is no reader.
struct Other {
    number: rustix::thread::Pid,
    /// It lives as long as this.
    _alive: std::sync::mpsc::Sender<()>,
}

impl Other {
    fn start(begin: impl FnOnce() + Send + 'static) -> Self {
        let (alive, ends) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            begin();
            tell.send(gettid()).unwrap();
            let _ended = ends.recv();
        });
        Self { number: told.recv().unwrap(), _alive: alive }
    }
}

#[test]
fn a_session_that_ends_leaves_a_descriptor_that_blocks() {
    let _alone = alone();
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pacer = Pacer::new(Duration::from_millis(1));
    pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                requests(&pacer, &read, Duration::from_millis(1), |_| Duration::from_micros(20));
            }
        });
        let begun = Instant::now();
        while !is_nonblocking(&read) && begun.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        let polled = is_nonblocking(&read);
        pacer.stop();
        let blocks = !is_nonblocking(&read);
        stopped.store(true, Ordering::Relaxed);
        assert!(polled, "it never polls");
        assert!(blocks);
    });
}

#[test]
fn sparse_requests_are_not_polled_for() {
    let _alone = alone();
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pacer = Pacer::new(Duration::from_millis(1));
    pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
    for _ in 0..20 {
        pacer.begin();
        pacer.end();
        std::thread::sleep(Duration::from_millis(2));
        assert!(!is_nonblocking(&read));
    }
    pacer.stop();
}

#[test]
fn nothing_polls_where_threads_wait_for_cpus() {
    let _alone = alone();
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pacer = Pacer::new(Duration::from_millis(1));
    pacer.start_with(read.try_clone().unwrap(), 4, || Some(usize::MAX)).unwrap();
    let [_, polled] = requests(&pacer, &read, Duration::from_millis(300), |_| Duration::from_micros(20));
    assert_eq!(polled, 0);
    pacer.stop();
}

#[test]
fn this_thread_is_seen_to_run() {
    assert!(runnable_threads().is_some_and(|threads| threads >= 1));
}

#[test]
fn zero_switches_it_off() {
    let _alone = alone();
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pacer = Pacer::new(Duration::ZERO);
    pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
    let [_, polled] = requests(&pacer, &read, Duration::from_millis(50), |_| Duration::from_micros(20));
    assert_eq!(polled, 0);
    pacer.stop();
}
