"""What happens when there is much: a million files, a directory of a million entries, a huge sparse file."""

import os
import pathlib
import random
import statistics
import time

from .system import MIB, Memory, read_away, run, say

# name: (what it says, unit, whether more is better, what axiomfs must reach)
ROWS = {
    "million-first": ("1,000,000 files of 0–4 KiB: the first 100,000", "/s", True, None),
    "million-last": ("1,000,000 files of 0–4 KiB: the last 100,000", "/s", True, None),
    "million-steady": ("last rate ÷ first rate", "", True, 0.8),
    "million-find": ("cold `find` of all of them", "files/s", True, None),
    "million-mount": ("mount of them from cold", "s", False, 3),
    "million-snapshot": ("snapshot of them", "ms", False, 50),
    "million-second": ("a second snapshot after 1,000 changes adds", "MiB", False, 2),
    "wide-create": ("create in a directory of 1,000,000 entries ÷ in a small one", "", True, 0.5),
    "wide-lookup": ("lookup in a directory of 1,000,000 entries ÷ in a small one", "", True, 0.5),
    "wide-lookup-dropped": ("the same after the kernel has dropped its names", "", True, None),
    "sparse-writes": ("4 KiB overwrites + fsync in a 50 GiB sparse file, for a minute", "/s", True, 500),
    "growth-memory": ("peak memory of all that", "MiB", False, 356),
}

FILES, DIRECTORIES, STEP = 1_000_000, 1_000, 100_000


def million_files(one, source, figures):
    """Files in directories, found again from cold, and what a snapshot after a few changes costs."""
    files, step = (FILES // 50, STEP // 50) if not source.facts["whole"] else (FILES, STEP)
    directory = one.open()
    text = source.mixed.read_bytes()[: 64 * MIB]
    rng = random.Random(6)
    rates = []
    memory = Memory(files // step if source.facts["whole"] else 0)
    for number in range(DIRECTORIES):
        (directory / f"d{number:04}").mkdir()
    for begin in range(0, files, step):
        memory.free_one()
        start = time.monotonic()
        for number in range(begin, begin + step):
            # One directory after the other, as programs do.
            write(f"{directory}/d{number * DIRECTORIES // files:04}/f{number:07}", text, rng)
        rates.append(step / (time.monotonic() - start))
    say(f"  {one.name}: files/s of each {step:,}: {', '.join(f'{rate:,.0f}' for rate in rates)}")
    figures.add(one, "million-first", rates[0])
    figures.add(one, "million-last", rates[-1])
    figures.add(one, "million-steady", rates[-1] / rates[0])
    if one.name == "axiomfs":
        snapshots(one, directory, files, text, rng, figures)
    one.cold()
    figures.add(one, "million-find", files / read_away(["find", directory]))
    if one.name == "axiomfs":
        figures.add(one, "million-mount", one.remount_cold())


def snapshots(one, directory, files, text, rng, figures):
    took = []
    for name in ("a", "b", "c"):
        start = time.monotonic()
        (directory.parent / "snapshots" / name).mkdir()
        took.append((time.monotonic() - start) * 1000)
    figures.add(one, "million-snapshot", statistics.median(took))
    one.durable()
    before = one.stored()
    for _ in range(1_000):
        number = rng.randrange(files)
        write(f"{directory}/d{number * DIRECTORIES // files:04}/f{number:07}", text, rng)
    (directory.parent / "snapshots" / "d").mkdir()
    one.durable()
    figures.add(one, "million-second", (one.stored() - before) / MIB)


def write(name, text, rng):
    begin = rng.randrange(len(text) - 4096)
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(file, text[begin : begin + rng.randrange(4097)])
    finally:
        os.close(file)


def wide_directory(one, source, figures):
    """Empty files in one directory, and what one more costs there and elsewhere."""
    files = FILES if source.facts["whole"] else FILES // 50
    directory = one.open()
    wide, small = directory / "wide", directory / "small"
    wide.mkdir()
    small.mkdir()
    touch(wide, range(files))
    count = 5_000
    places = (("small", small, range(files, files + count)), ("wide", wide, range(files + count)))
    rates = {name: [] for name, *_ in places}
    for name, place, _ in places:
        start = time.monotonic()
        touch(place, range(files, files + count))
        rates[name].append(count / (time.monotonic() - start))
    rng = random.Random(7)
    for dropped in (False, True):
        if dropped:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("2\n")
        for name, place, known in places:
            names = [f"{place}/e{rng.choice(known):07}" for _ in range(count)]
            start = time.monotonic()
            for path in names:
                os.stat(path)
            rates[name].append(count / (time.monotonic() - start))
    for name, (create, lookup, again) in rates.items():
        say(f"  {one.name}: {name}: {create:.0f} creates/s, {lookup:.0f} lookups/s, {again:.0f} with the kernel's names dropped")
    for row, wide_rate, small_rate in zip(("wide-create", "wide-lookup", "wide-lookup-dropped"), rates["wide"], rates["small"]):
        figures.add(one, row, wide_rate / small_rate)


def touch(directory, numbers):
    for number in numbers:
        os.close(os.open(f"{directory}/e{number:07}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def sparse_file(one, source, figures):
    """Random overwrites of a huge sparse file, each made durable."""
    seconds = 60 if source.facts["whole"] else 5
    path = one.open() / "sparse"
    with open(path, "wb") as file:
        file.truncate(50 << 30)
    rng, block, done = random.Random(8), os.urandom(4096), 0
    file = os.open(path, os.O_WRONLY)
    try:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            os.pwrite(file, block, rng.randrange((50 << 30) // 4096) * 4096)
            os.fsync(file)
            done += 1
        figures.add(one, "sparse-writes", done / (time.monotonic() - start))
    finally:
        os.close(file)
    one.durable()


SESSIONS = {"million": million_files, "wide": wide_directory, "sparse": sparse_file}
