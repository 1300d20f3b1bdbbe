"""How smooth it is: answers while a copy uses all CPUs, changes of the chain under load, the CPU time of a mount nobody uses."""

import ctypes
import os
import statistics
import subprocess
import sys
import threading
import time

from .system import MIB, Failed, cpu_seconds, run

# name: (what it says, unit, whether more is better, what axiomfs must reach)
ROWS = {
    "stat-p999": ("p99.9 of `stat` while copies use all CPUs", "ms", False, 20),
    "read-p999": ("p99.9 of a cached 4 KiB read meanwhile", "ms", False, 20),
    "pause-p999": ("p99.9 of what an idle real-time thread waits for its CPU meanwhile", "ms", False, None),
    "swap-p50": ("change of the chain under load, p50", "ms", False, None),
    "swap-p99": ("change of the chain under load, p99", "ms", False, None),
    "swap-max": ("change of the chain under load, longest", "ms", False, None),
    "swap-adds": ("most that a change added to any frame", "ms", False, 10),
    "load-p50": ("initialise a plugin, p50", "ms", False, None),
    "load-p99": ("initialise a plugin, p99", "ms", False, None),
    "load-max": ("initialise a plugin, longest", "ms", False, 100),
    "load-own": ("initialise a plugin, longest by the host's clock", "ms", False, 100),
    "unload-p50": ("unload a plugin, p50", "ms", False, None),
    "unload-p99": ("unload a plugin, p99", "ms", False, None),
    "unload-max": ("unload a plugin, longest", "ms", False, 50),
    "unload-own": ("unload a plugin, longest by the host's clock", "ms", False, 50),
    "swap-success": ("operations that succeeded meanwhile", "%", True, 100),
    "chain-rate": ("through the whole chain, until durable", "MB/s", True, 125),
    "idle-cpu": ("CPU time of a mount 10 ms after a burst", "ms/s", False, 1),
}

CHAINS = ("zstd(level=1)|padme|aes-256-gcm", "aes-256-gcm", "zstd(level=9)|aes-256-gcm", "zstd(level=3)|aes-256-gcm")
# No chain above has it, so that no data needs it and it may be unloaded.
IDLE_PLUGIN = "lz4"
AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS = -100, 0x2000, 0x7FF


class Copies:
    """Copies a file over and over, with as many `cp` at a time as there are CPUs, until the block ends."""

    def __init__(self, source, directory):
        self.source, self.directory = source, directory
        self.ended, self.done, self.failed = threading.Event(), 0, []
        self.threads = [threading.Thread(target=self.copy, args=(number,)) for number in range(os.cpu_count())]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def copy(self, number):
        while not self.ended.is_set():
            try:
                run(["cp", self.source, self.directory / f"copy{number}"])
                self.done += 1
            except Failed as error:
                self.failed.append(str(error))
                return


# Goes before everything else on its CPU, and notes how late it is woken until its input ends.
SLEEPER = """
import os, select, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
late = []
while not select.select([0], [], [], 0)[0]:
    begun = time.perf_counter()
    time.sleep(0.001)
    late.append((time.perf_counter() - begun) * 1000 - 1)
print(*late)
"""


class Pauses:
    """How long the machine itself, or what it runs on, takes the CPUs away: what no program on it can be faster than."""

    def __enter__(self):
        command = [sys.executable, "-c", SLEEPER]
        self.sleepers = [subprocess.Popen([*command, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for cpu in sorted(os.sched_getaffinity(0))]
        return self

    def __exit__(self, *_):
        outputs = [sleeper.communicate(b"end")[0] for sleeper in self.sleepers]
        if any(sleeper.returncode for sleeper in self.sleepers):
            raise Failed("A real-time thread could not be run beside the copies")
        self.late = [float(word) for output in outputs for word in output.split()]


def percentile(values, share):
    """The value that `share` of all do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def timed_ms(call, *arguments):
    start = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - start) * 1000


def fresh_stat(libc, path, buffer):
    """statx that asks the filesystem, whatever the kernel remembers."""
    if libc.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer):
        raise OSError(ctypes.get_errno(), "statx")


def uncached_read(file, offset):
    """A read that the kernel can't answer: the page is dropped first. The filesystem has it in memory."""
    os.posix_fadvise(file, offset, 4096, os.POSIX_FADV_DONTNEED)
    if len(os.pread(file, 4096, offset)) != 4096:
        raise Failed("A read came back short")


def busy(one, source, figures):
    """stat and small reads, all of which ask the filesystem, beside copies that use all CPUs."""
    if one.lossy:
        # It keeps nothing that could be read back.
        return
    directory, seconds = one.open(), 30 if source.facts["whole"] else 4
    names = [os.fsencode(directory / f"f{number:03}") for number in range(500)]
    for name in names:
        with open(name, "wb") as file:
            file.write(b"x" * 100)
    with open(directory / "read", "wb") as file:
        file.write(os.urandom(MIB))
    one.durable()
    libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(256)
    file = os.open(directory / "read", os.O_RDONLY)
    stats, reads = [], []
    try:
        for offset in range(0, MIB, 4096):
            os.pread(file, 4096, offset)
        with Copies(source.mixed, directory) as copies, Pauses() as pauses:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                stats.append(timed_ms(fresh_stat, libc, names[len(stats) % len(names)], buffer))
                reads.append(timed_ms(uncached_read, file, len(reads) * 4096 % MIB))
                # As somebody who looks around does; and else it would be these that use the CPUs.
                time.sleep(0.001)
    finally:
        os.close(file)
    if copies.failed:
        raise Failed(copies.failed[0])
    figures.add(one, "stat-p999", percentile(stats, 0.999))
    figures.add(one, "read-p999", percentile(reads, 0.999))
    figures.add(one, "pause-p999", percentile(pauses.late, 0.999))


def swaps(one, source, figures):
    """A thousand changes of the chain, plugins loaded and unloaded between them, while data is copied; then one copy alone."""
    if not one.name.startswith("axiomfs"):
        return
    count = 1_000 if source.facts["whole"] else 100
    directory = one.open()
    took = {"swap": [], "load": [], "unload": []}
    own = {"load": [], "unload": []}

    def command(kind, text):
        start = time.perf_counter()
        reply = one.control(text)
        took[kind].append((time.perf_counter() - start) * 1000)
        if kind in own:
            own[kind].append(reply["took_ms"])

    with Copies(source.mixed, directory) as copies:
        for number in range(count):
            command("swap", f"chain set default {CHAINS[number % len(CHAINS)]}")
            command("unload", f"plugin unload {IDLE_PLUGIN}")
            command("load", f"plugin load {IDLE_PLUGIN}")
            # Spread over the copies, so that frames meet chains of all kinds.
            time.sleep(0.01)
    metrics = one.metrics()
    for name, values in took.items():
        figures.add(one, f"{name}-p50", statistics.median(values))
        figures.add(one, f"{name}-p99", percentile(values, 0.99))
        figures.add(one, f"{name}-max", max(values))
    for name, values in own.items():
        figures.add(one, f"{name}-own", max(values))
    figures.add(one, "swap-adds", metrics["axiomfs_swap_wait_max_seconds"] * 1000)
    operations = count + copies.done + len(copies.failed) + len(took["load"]) + len(took["unload"])
    for number in range(len(copies.threads)):
        if not copies.failed:
            run(["cmp", source.mixed, directory / f"copy{number}"])
    figures.add(one, "swap-success", 100 * (1 - len(copies.failed) / operations))
    one.close()
    target = one.open() / "mixed.bin"
    start = time.monotonic()
    run(["cp", source.mixed, target])
    one.durable()
    figures.add(one, "chain-rate", source.facts["mixed_bytes"] / 1e6 / (time.monotonic() - start))


def idle(one, source, figures):
    """CPU time that the daemon takes after a burst of requests, from 10 ms after the last on. A mount that nobody asks anything."""
    if one.lossy or not hasattr(one, "daemon"):
        return
    directory, seconds = one.open(), 5
    name = os.fsencode(directory / "file")
    with open(name, "wb") as file:
        file.write(b"x")
    one.durable()
    libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(256)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        fresh_stat(libc, name, buffer)
    time.sleep(0.01)
    before = cpu_seconds(one.daemon.pid)
    time.sleep(seconds)
    figures.add(one, "idle-cpu", (cpu_seconds(one.daemon.pid) - before) * 1000 / seconds)


SESSIONS = {"busy": busy, "swaps": swaps, "idle": idle}
