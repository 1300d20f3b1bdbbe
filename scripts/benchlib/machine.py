"""What the figures were measured on and with."""

import json
import os
import pathlib
import platform
import subprocess

from .system import HALTPOLL, run, say

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def binaries(axiomfs, null_fs):
    """Paths of the two programs; what isn't given is built."""
    wanted = {"axiomfs": axiomfs, "null-fs": null_fs}
    missing = [name for name, path in wanted.items() if path is None]
    if missing:
        say(f"building {' and '.join(missing)}")
        run(["cargo", "build", "--release", "--quiet", *(word for name in missing for word in ("--bin", name))], cwd=ROOT, limit=3600)
        metadata = json.loads(subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
        for name in missing:
            wanted[name] = pathlib.Path(metadata["target_directory"], "release", name)
    return {name: path.resolve(strict=True) for name, path in wanted.items()}


def facts(work, contenders):
    cpu = [line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "filesystem": run(["df", "--output=fstype", work]).split()[-1],
        "guest_halt_poll_ns": int(HALTPOLL.read_text()) if HALTPOLL.exists() else None,
        "commit": commit(),
        "versions": {"rustc": first_line(["rustc", "--version"]), "cp": first_line(["cp", "--version"]), "rsync": first_line(["rsync", "--version"])}
        | {one.name: one.version() for one in contenders},
    }


def commit():
    try:
        hash_ = run(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"]).strip()
        return hash_ + ("+changes" if run(["git", "-C", ROOT, "status", "--porcelain"]).strip() else "")
    except Exception:  # noqa: BLE001 (a source archive has no history; that is no reason to fail)
        return "unknown"


def first_line(command):
    try:
        return run(command).splitlines()[0]
    except Exception:  # noqa: BLE001 (a version that can't be told is reported as such)
        return "unknown"
