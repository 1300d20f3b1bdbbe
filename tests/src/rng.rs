//! A small seeded generator, so that a failing run can be repeated from the one number it printed.

/// SplitMix64: good enough to choose operations and to make data that does not compress.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that gives the same sequence for the same seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "the word for it, and it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number from `low` up to and including `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of the items; the slice must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// The seed of this run: `AXIOMFS_SEED`, or one from the clock; printed, so that a failure can be repeated.
pub fn run_seed(test: &str) -> u64 {
    let seed = match std::env::var("AXIOMFS_SEED") {
        Ok(text) => text.parse().expect("AXIOMFS_SEED must be a number"),
        Err(_) => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|d| d.as_nanos() as u64).unwrap_or(1)
        }
    };
    eprintln!("{test}: seed {seed} (repeat with AXIOMFS_SEED={seed})");
    seed
}

/// True when `AXIOMFS_SOAK=1` asks for the long form of the random tests.
pub fn soak() -> bool {
    std::env::var("AXIOMFS_SOAK").is_ok_and(|v| v == "1")
}

/// Bytes that don't compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&rng.next().to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Text-like bytes that compress to about a third, the same for the same seed.
pub fn prose(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: &[&str] = &[
        "segment ",
        "chunk ",
        "frame ",
        "the ",
        "of ",
        "a ",
        "epoch\n",
        "root ",
        "snapshot ",
        "lease ",
        "extent ",
        "and ",
        "names ",
        "every ",
    ];
    let mut rng = Rng::new(seed);
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        out.extend_from_slice(rng.pick(WORDS).as_bytes());
        if rng.one_in(4) {
            out.extend_from_slice(format!("{:x} ", rng.below(1 << 24)).as_bytes());
        }
    }
    out.truncate(len);
    out
}
