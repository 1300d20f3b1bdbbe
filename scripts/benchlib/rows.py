"""The rows of the table: what is done, in which order, and what is taken from it."""

import contextlib
import os
import random
import statistics
import time

from . import growth, smooth
from .peers import Backup
from .system import MIB, Failed, read_away, read_through, run, say

# name: (what it says, unit, whether more is better, what axiomfs must reach)
ROWS = {
    "cp": ("`cp mixed.bin`", "MiB/s", True, 400),
    "cp-durable": ("`cp mixed.bin` until durable", "s", False, 2.5),
    "cp-tree": ("`cp -a tree`", "files/s", True, 3_000),
    "rsync-tree": ("`rsync -a tree`", "files/s", True, 2_000),
    "both-durable": ("both, until durable", "s", False, 6),
    "rsync-again": ("`rsync -a` again, nothing changed", "files/s", True, 12_000),
    "create": ("create 5,000 × 100 bytes", "/s", True, 6_500),
    "fsync": ("write 4 KiB + fsync", "/s", True, 800),
    "cold-cat": ("cold `cat mixed.bin`", "MiB/s", True, 600),
    "cold-find": ("cold `find -ls` of the tree", "files/s", True, 15_000),
    "cold-tar": ("cold `tar` of the tree", "files/s", True, 3_500),
    "cold-random": ("cold random 4 KiB reads", "/s", True, 1_000),
    "rm": ("`rm -rf tree`", "s", False, 4),
    "stored": ("stored (data and metadata)", "MiB", False, 225),
    "memory": ("peak memory", "MiB", False, 356),
    "in-flight-1": ("both, until durable, `max_in_flight: 1`", "s", False, None),
    "in-flight-32": ("both, until durable, `max_in_flight: 32`", "s", False, None),
} | growth.ROWS | smooth.ROWS


class Figures:
    """Values of each row and contender, in the order of the runs, for one way in which idle CPUs wait."""

    def __init__(self, way):
        self.way, self.values, self.requests, self.server = way, {}, {}, {}

    def add(self, contender, row, value):
        self.values.setdefault(row, {}).setdefault(contender.name, []).append(value)
        say(f"  {contender.name}, {self.way}: {ROWS[row][0]}: {value:.4g} {ROWS[row][1]}{self.server_since(contender)}")

    def server_since(self, contender):
        """What the store's server took since the figure before, where it has one. With every session a new one begins."""
        cpu = getattr(contender, "server_cpu", lambda: None)()
        if cpu is None:
            return ""
        before = self.server.get(contender.name, 0)
        self.server[contender.name] = cpu
        return f" (the server took {cpu - before if cpu >= before else cpu:.2f} s of CPU since the last figure)"

    def note_requests(self, contender, session):
        """What the session just done has asked of the store, and what its server took for that."""
        if not hasattr(contender, "session_requests"):
            return
        requests, cpu = contender.session_requests(), contender.server_cpu()
        if requests:
            self.requests.setdefault(session, []).append({"contender": contender.name, "requests": requests, "server_cpu_s": cpu})

    def summary(self):
        spread = lambda v: {"median": statistics.median(v), "min": min(v), "max": max(v), "values": v}  # noqa: E731
        return {row: {name: spread(values) for name, values in per.items()} for row, per in self.values.items()}


@contextlib.contextmanager
def clock():
    """Measures a block; the seconds are in the list afterwards."""
    took = []
    start = time.monotonic()
    yield took
    took.append(time.monotonic() - start)


def timed(command):
    with clock() as took:
        run(command)
    return took[0]


def count_files(tree):
    return sum(len(below) + len(names) for _, below, names in os.walk(tree))


def big_file(one, source, figures):
    """One big file in, durable, and out again cold."""
    target = one.open() / "mixed.bin"
    start = time.monotonic()
    figures.add(one, "cp", source.facts["mixed_bytes"] / MIB / timed(["cp", source.mixed, target]))
    if not one.lossy:
        one.durable()
        figures.add(one, "cp-durable", time.monotonic() - start)
        one.cold()
        figures.add(one, "cold-random", random_reads(target))
    one.cold()
    figures.add(one, "cold-cat", source.facts["mixed_bytes"] / MIB / read_away(["cat", target]))
    if not one.lossy:
        run(["cmp", source.mixed, target])


def many_files(one, source, figures):
    """A tree and the big file in, durable; the tree out again cold, compared, and removed."""
    directory = one.open()
    target, entries = directory / "tree", source.entries
    start = time.monotonic()
    figures.add(one, "cp-tree", entries / timed(["cp", "-a", source.tree, target]))
    run(["cp", source.mixed, directory / "mixed.bin"])
    if not one.lossy:
        one.durable()
        figures.add(one, "both-durable", time.monotonic() - start)
        figures.add(one, "stored", one.stored() / MIB)
    figures.add(one, "rsync-again", entries / timed(["rsync", "-a", f"{source.tree}/", f"{target}/"]))
    one.cold()
    figures.add(one, "cold-find", entries / read_away(["find", target, "-ls"]))
    one.cold()
    figures.add(one, "cold-tar", entries / read_through(["tar", "cf", "-", "-C", directory, "tree"]))
    if not one.lossy:
        run(["diff", "-r", source.tree, target])
    figures.add(one, "rm", timed(["rm", "-rf", target]))


def small_files(one, source, figures):
    """rsync, creation of small files, and fsync."""
    directory = one.open()
    figures.add(one, "rsync-tree", source.entries / timed(["rsync", "-a", f"{source.tree}/", f"{directory / 'rsynced'}/"]))
    (directory / "small").mkdir()
    figures.add(one, "create", create_files(directory / "small", 5_000))
    figures.add(one, "fsync", write_and_sync(directory / "synced", 1_000))
    if not one.lossy:
        run(["diff", "-r", source.tree, directory / "rsynced"])


def in_flight(one, source, figures):
    """Both in, durable, with one frame at a time in work and with 32."""
    if not hasattr(one, "config"):
        return
    before = one.config
    try:
        for most in (1, 32):
            one.config = one.base.parent / "in-flight.yaml"
            one.config.write_text(f"version: 1\nlimits: {{max_in_flight: {most}}}\n")
            directory = one.open()
            start = time.monotonic()
            run(["cp", "-a", source.tree, directory / "tree"])
            run(["cp", source.mixed, directory / "mixed.bin"])
            one.durable()
            figures.add(one, f"in-flight-{most}", time.monotonic() - start)
            if most == 1:
                one.close()
    finally:
        one.config.unlink(missing_ok=True)
        one.config = before


def backup(one, source, figures):
    """What a backup program does with the same data."""
    one.fresh()
    figures.add(one, "both-durable", one.backup([source.tree, source.mixed]))
    figures.add(one, "stored", one.stored() / MIB)
    figures.add(one, "rsync-again", source.entries / one.backup([source.tree, source.mixed]))
    figures.add(one, "memory", one.peak() / MIB)
    shown = lambda path: one.show() / str(path.resolve())[1:]  # noqa: E731
    figures.add(one, "cold-cat", source.facts["mixed_bytes"] / MIB / read_away(["cat", shown(source.mixed)]))
    figures.add(one, "cold-find", source.entries / read_away(["find", shown(source.tree), "-ls"]))
    figures.add(one, "cold-tar", source.entries / read_through(["tar", "cf", "-", "-C", shown(source.tree).parent, "tree"]))


def random_reads(path, count=1_000):
    rng, pages = random.Random(4), os.path.getsize(path) // 4096
    file = os.open(path, os.O_RDONLY)
    try:
        with clock() as took:
            for _ in range(count):
                if len(os.pread(file, 4096, rng.randrange(pages) * 4096)) != 4096:
                    raise Failed(f"A read of {path} came back short")
    finally:
        os.close(file)
    return count / took[0]


def create_files(directory, count):
    content = b"x" * 100
    names = [f"{directory}/f{number:05}" for number in range(count)]
    with clock() as took:
        for name in names:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(file, content)
            os.close(file)
    return count / took[0]


def write_and_sync(path, count):
    block = os.urandom(4096)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with clock() as took:
            for _ in range(count):
                os.write(file, block)
                os.fsync(file)
    finally:
        os.close(file)
    return count / took[0]


USUAL = {"big": big_file, "tree": many_files, "small": small_files, "in-flight": in_flight}
SESSIONS = USUAL | growth.SESSIONS | smooth.SESSIONS


def measure(contenders, source, runs, sessions, ways, set_way):
    """Does all sessions, paired. A failure is reported and costs the contender only that session. Returns figures and requests by the
    way in which idle CPUs wait, and the failures."""
    figures, failures = {way: Figures(way) for way in ways}, []
    source.entries = count_files(source.tree)
    for number in range(runs):
        for session in sessions:
            for way in ways:
                set_way(way)
                for one in contenders:
                    # A backup does everything in one session; once per run is enough.
                    todo = SESSIONS[session] if not isinstance(one, Backup) else backup if session == sessions[0] else None
                    if todo is None:
                        continue
                    say(f"run {number + 1} of {runs}, {way}: {one.name}, {todo.__name__.replace('_', ' ')}")
                    error = attempt(one, session, todo, source, figures[way])
                    if error:
                        say(f"FAILED: {error}")
                        failures.append({"contender": one.name, "run": number + 1, "session": todo.__name__, "idle": way, "error": error})
    return {way: one.summary() for way, one in figures.items()}, {way: one.requests for way, one in figures.items()}, failures


def attempt(one, session, todo, source, figures):
    """One session of one contender, and all away again. Returns what went wrong."""
    try:
        os.sync()
        source.warm()
        todo(one, source, figures)
        peak = one.peak()
        if peak and todo is not backup:
            figures.add(one, "growth-memory" if session in growth.SESSIONS else "memory", peak / MIB)
        figures.note_requests(one, session)
    except (Failed, OSError) as error:
        return str(error)
    finally:
        one.close()
    return None
