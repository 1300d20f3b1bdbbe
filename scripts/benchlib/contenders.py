"""What is measured: each gives a fresh directory, makes it durable, makes it cold, and says what it stored."""

import time

from .machine import first_line
from .system import disk_usage, drop_page_cache, is_mounted, peak_memory, remove, run


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
    """The filesystem that answers at once: what FUSE costs by itself. It keeps no data."""

    lossy = True

    def __init__(self, work, binary, cleanup):
        super().__init__("null", work, cleanup)
        self.binary = binary

    def version(self):
        return "fuser 0.18.0, 1 thread"

    def mount(self):
        self.daemon = self.cleanup.start([self.binary, self.mountpoint], self.mountpoint, log=self.log)

    def cold(self):
        drop_page_cache()

    def stored(self):
        return None

    def peak(self):
        return None


class Axiomfs(Mounted):
    """The product, with its defaults unless a settings file is given."""

    def __init__(self, work, binary, cleanup, config):
        super().__init__("axiomfs", work, cleanup)
        self.binary, self.config = binary, config

    def version(self):
        return first_line([self.binary, "--version"])

    def create(self):
        self.passphrase = self.base / "passphrase"
        self.passphrase.write_text("benchmark\n")
        run([self.binary, "init", self.base / "store", "--passphrase-file", self.passphrase])

    def mount(self):
        command = [self.binary, "mount", self.base / "store", self.mountpoint, "-f", "--passphrase-file", self.passphrase,
                   "--state", self.base / "state", "--cache", self.base / "cache"]
        command += ["--config", self.config] if self.config else []
        self.daemon = self.cleanup.start(command, self.mountpoint, log=self.log)

    def directory(self):
        return self.mountpoint / "live"

    def take_away(self):
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
