"""What is measured: each gives a fresh directory, makes it durable, makes it cold, and says what it stored."""

import json
import os
import time

from . import s3server
from .machine import first_line
from .system import Failed, disk_usage, drop_page_cache, is_mounted, peak_memory, remove, run


class Ext4:
    """A directory of the disk itself."""

    name = "ext4"
    lossy = False

    def __init__(self, work):
        self.base = work / "ext4"

    def install(self):
        pass

    def version(self):
        return first_line(["uname", "-sr"])

    def open(self):
        """A fresh, empty directory to work in."""
        self.close()
        self.base.mkdir()
        return self.base

    def close(self):
        remove(self.base)

    def durable(self):
        run(["sync", "-f", self.base])

    def cold(self):
        drop_page_cache()

    def stored(self):
        return disk_usage(self.base)

    def peak(self):
        return None


class Mounted:
    """A contender with a daemon and a mount."""

    lossy = False

    def __init__(self, name, work, cleanup):
        self.name, self.base, self.cleanup = name, work / name, cleanup
        self.mountpoint = self.base / "mnt"
        self.log = self.base / "log"
        self.daemon, self.most = None, 0

    def install(self):
        pass

    def open(self):
        self.close()
        self.base.mkdir()
        self.create()
        self.mount()
        return self.directory()

    def directory(self):
        return self.mountpoint

    def create(self):
        pass

    def note_peak(self):
        if self.daemon is not None and self.daemon.poll() is None:
            self.most = max(self.most, peak_memory(self.daemon.pid))

    def unmount(self):
        self.note_peak()
        self.take_away()
        self.cleanup.stopped(self.daemon, self.mountpoint)
        self.daemon = None

    def take_away(self):
        run(["umount", self.mountpoint])

    def close(self):
        """Takes all of it away, also after a failure."""
        if self.daemon is not None:
            self.note_peak()
            if is_mounted(self.mountpoint):
                run(["umount", "-l", self.mountpoint])
            if self.daemon in self.cleanup.daemons:
                self.daemon.kill()
                self.daemon.wait()
                self.cleanup.daemons.remove(self.daemon)
                self.cleanup.mounts.remove(self.mountpoint)
            self.daemon = None
        remove(self.base)

    def durable(self):
        pass

    def peak(self):
        self.note_peak()
        most, self.most = self.most, 0
        return most or None


class Null(Mounted):
    """The filesystem that answers at once: what FUSE costs by itself. It keeps no data. With access control lists the kernel
    asks it as much as it asks axiomfs: after `cp -a`, which sets one for each file, it forgets the file's attributes."""

    lossy = True

    def __init__(self, work, binary, cleanup, name="null", options=()):
        super().__init__(name, work, cleanup)
        self.binary, self.options = binary, options

    def version(self):
        return "fuser 0.18.0, 1 thread"

    def mount(self):
        self.daemon = self.cleanup.start([self.binary, self.mountpoint, *self.options], self.mountpoint, log=self.log)

    def cold(self):
        drop_page_cache()

    def stored(self):
        return None

    def peak(self):
        return None


class Axiomfs(Mounted):
    """The product, with its defaults unless a settings file is given, on a directory."""

    def __init__(self, work, binary, cleanup, config, name="axiomfs", env=None):
        super().__init__(name, work, cleanup)
        self.binary, self.config, self.env = binary, config, env or {}
        self.requests = {}

    def version(self):
        return first_line([self.binary, "--version"])

    def store(self):
        return self.base / "store"

    def create(self):
        self.passphrase = self.base / "passphrase"
        self.passphrase.write_text("benchmark\n")
        run([self.binary, "init", self.store(), "--passphrase-file", self.passphrase], env=self.env)

    def mount(self):
        command = [self.binary, "mount", self.store(), self.mountpoint, "-f", "--passphrase-file", self.passphrase,
                   "--state", self.base / "state", "--cache", self.base / "cache"]
        command += ["--config", self.config] if self.config else []
        self.daemon = self.cleanup.start(command, self.mountpoint, log=self.log, env=self.env)

    def directory(self):
        return self.mountpoint / "live"

    def take_away(self):
        self.note_requests()
        run([self.binary, "umount", self.mountpoint])

    def durable(self):
        run([self.binary, "sync", self.mountpoint])

    def cold(self):
        self.unmount()
        remove(self.base / "cache")
        drop_page_cache()
        self.mount()

    def remount_cold(self):
        """Seconds until a mount answers that has nothing but the store."""
        self.unmount()
        remove(self.base / "cache")
        remove(self.base / "state")
        drop_page_cache()
        start = time.monotonic()
        self.mount()
        next(iter(self.directory().iterdir()), None)
        return time.monotonic() - start

    def stored(self):
        return disk_usage(self.base / "store")

    def metrics(self):
        """The values of `.axiomfs/metrics`, by name and labels as they stand there."""
        lines = (self.mountpoint / ".axiomfs/metrics").read_text().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))}

    def control(self, command):
        """The reply to a control command; a refused one fails the session."""
        file = os.open(self.mountpoint / ".axiomfs/control", os.O_RDWR)
        try:
            os.write(file, command.encode())
            reply = json.loads(os.read(file, 65536))
        finally:
            os.close(file)
        if not reply["ok"]:
            raise Failed(f"{command}: {reply}")
        return reply

    def note_requests(self):
        """Adds what this mount asked of its store to what the session's earlier ones did. The last commit, at the unmount, is not in it."""
        for name, value in self.metrics().items():
            if name.startswith("axiomfs_store_request_seconds_count"):
                kind = name.split('"')[1]
                self.requests[kind] = self.requests.get(kind, 0) + int(value)

    def session_requests(self):
        """What the session has asked of the store, by kind; to be called while it is mounted."""
        if self.daemon is not None and is_mounted(self.mountpoint):
            self.note_requests()
        requests, self.requests = self.requests, {}
        return {kind: count for kind, count in requests.items() if count}

    def server_cpu(self):
        """CPU seconds of the store's server in this session; without one there are none."""
        return None


class AxiomfsS3(Axiomfs):
    """The product on an S3 server of its own, fresh for every session."""

    def __init__(self, work, binary, cleanup, config, name="axiomfs", env=None):
        super().__init__(work, binary, cleanup, config, name, env)
        self.given = self.env
        self.weed, self.server = None, None

    def install(self):
        self.weed = s3server.install()

    def version(self):
        return f"{super().version()} on SeaweedFS {s3server.version(self.weed)}"

    def store(self):
        return self.server.url("bench")

    def create(self):
        self.server = s3server.S3Server(self.weed, self.base / "server", self.cleanup)
        self.env = self.given | self.server.environment()
        super().create()

    def close(self):
        # The server goes last: the mount may still have to say something to it.
        server, self.server = self.server, None
        if server is None:
            super().close()
            return
        base, self.base = self.base, self.base / "nothing"
        try:
            super().close()
        finally:
            self.base = base
            server.close()
            remove(self.base)

    def stored(self):
        return disk_usage(self.base / "server")

    def server_cpu(self):
        return self.server.cpu_seconds() if self.server is not None else None
