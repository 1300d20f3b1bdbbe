"""Processes, mounts and kernel settings, and how they are put back whatever happens."""

import mmap
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

REPORTING = pathlib.Path("/sys/module/page_reporting")
HALTPOLL = pathlib.Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")


MIB = 1 << 20


class Failed(Exception):
    """A command failed, or something did not happen in time."""


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(command, limit=1800, env=None, **options):
    """Runs a command to its end; its output is shown only if it fails."""
    try:
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=limit, env=None if env is None else os.environ | env, **options)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} was not done after {limit} s") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout.decode(errors='replace')[-2000:]}")
    return done.stdout.decode(errors="replace")


def run_measured(command, env=None):
    """Runs a command to its end; returns its seconds and its peak memory in bytes."""
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        child = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                 env=None if env is None else os.environ | env)
        _, status, usage = os.wait4(child.pid, 0)
        took = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if child.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: exit code {child.returncode}\n{text[-2000:]}")
    return took, usage.ru_maxrss * 1024


def read_away(command):
    """Seconds until a command has written all its output to /dev/null."""
    start = time.monotonic()
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    took = time.monotonic() - start
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")
    return took


def read_through(command):
    """The same through a pipe, for tar, which does not read at all for /dev/null."""
    start = time.monotonic()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        buffer = bytearray(MIB)
        while child.stdout.readinto(buffer):
            pass
        errors = child.stderr.read().decode(errors="replace")
    took = time.monotonic() - start
    if child.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: exit code {child.returncode}\n{errors[-2000:]}")
    return took


def wait_for(what, condition, limit=30.0):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {limit:.0f} s")
        time.sleep(0.01)


def is_mounted(path):
    wanted = str(path).encode().replace(b" ", b"\\040")
    return any(line.split()[4] == wanted for line in pathlib.Path("/proc/self/mountinfo").read_bytes().splitlines())


def peak_memory(pid):
    """The most memory that a running process, or the biggest of its children, has held, in bytes."""
    here = 0
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            here = int(line.split()[1]) * 1024
    children = [int(child) for task in tasks(pid, "children") for child in task.split()]
    return max([here, *map(peak_memory, children)])


def tasks(pid, name):
    """A file of each thread of a running process. A thread may end meanwhile."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            yield (task / name).read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue


def cpu_seconds(pid):
    """CPU time of a running process and its children, to the nanosecond where the kernel counts so."""
    own = sum(int(task.split()[0]) for task in tasks(pid, "schedstat")) / 1e9
    return own + sum(cpu_seconds(int(child)) for task in tasks(pid, "children") for child in task.split())


def disk_usage(path):
    """Bytes that the files below a directory take on the disk."""
    seen = {}
    for directory, _, names in os.walk(path):
        for name in names:
            found = os.lstat(os.path.join(directory, name))
            seen[(found.st_dev, found.st_ino)] = found.st_blocks * 512
    return sum(seen.values())


def drop_page_cache():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


class Memory:
    """Memory that the hypervisor has given already, where it takes back what is free for some seconds. Giving it again costs some
    microseconds a page: a long run that begins with the one and goes on with the other looks as if it slowed down. So it is taken
    before the run, in equal parts, and each is freed when it is going to be needed."""

    def __init__(self, parts):
        available = int(re.search(r"MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text()).group(1)) * 1024
        size = min(MIB << 10, available // 2 // parts) if REPORTING.exists() else 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self.parts = [mmap.mmap(-1, size, flags=flags) for _ in range(parts if size else 0)]

    def free_one(self):
        if self.parts:
            self.parts.pop().close()


def remove(path):
    if os.path.lexists(path):
        shutil.rmtree(path)


class Cleanup:
    """Ends the daemons, takes the mounts away and puts kernel settings back, also after a signal."""

    def __init__(self):
        self.daemons = []
        self.mounts = []
        self.haltpoll = None

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(143))
        return self

    def __exit__(self, *_):
        try:
            for mount in list(self.mounts):
                self.unmount_anyhow(mount)
            for daemon in self.daemons:
                if daemon.poll() is None:
                    daemon.kill()
                    daemon.wait()
        finally:
            self.set_idle("default")

    def set_idle(self, way):
        """How idle CPUs wait from now on: "default" is what the machine had when the run began."""
        if way == "default":
            if self.haltpoll is not None:
                HALTPOLL.write_text(self.haltpoll)
            return
        if not HALTPOLL.exists():
            raise Failed(f"{HALTPOLL} doesn't exist: how idle CPUs wait can't be set here")
        if self.haltpoll is None:
            self.haltpoll = HALTPOLL.read_text()
        HALTPOLL.write_text({"sleep": "0\n", "poll": "200000\n"}[way])

    def start(self, command, mountpoint, env=None, log=None, limit=60.0):
        """Starts a daemon and waits until its mount is there. Returns the process."""
        mountpoint.mkdir(parents=True, exist_ok=True)
        with open(log or os.devnull, "ab") as output:
            daemon = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                      env=None if env is None else os.environ | env)
        self.daemons.append(daemon)
        self.mounts.append(mountpoint)

        def ready():
            if daemon.poll() is not None:
                text = pathlib.Path(log).read_text(errors="replace")[-2000:] if log else ""
                raise Failed(f"{command[0]} ended with exit code {daemon.returncode} instead of mounting\n{text}")
            return is_mounted(mountpoint)

        wait_for(f"The mount of {command[0]}", ready, limit)
        return daemon

    def stopped(self, daemon, mountpoint, limit=600.0):
        """Waits for a daemon whose mount was taken away."""
        wait_for("The end of the daemon", lambda: daemon.poll() is not None, limit)
        self.daemons.remove(daemon)
        self.mounts.remove(mountpoint)
        if daemon.returncode != 0:
            raise Failed(f"The daemon ended with exit code {daemon.returncode}")

    def unmount_anyhow(self, mountpoint):
        if is_mounted(mountpoint):
            subprocess.run(["umount", "-l", str(mountpoint)], check=False, stderr=subprocess.DEVNULL)
        self.mounts.remove(mountpoint)
