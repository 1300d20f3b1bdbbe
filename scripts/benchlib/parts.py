"""The parts by themselves: criterion's benchmarks, and an index that is larger than memory."""

import json
import os
import pathlib
import subprocess

from . import machine, report
from .machine import ROOT
from .system import MIB, Failed, remove, say

# Crates with benchmarks, in the order of the table.
CRATES = ("axiomfs-chunker-fastcdc", "axiomfs-host", "axiomfs-repository", "axiomfs-live")
CHUNKS = 20_000_000


def cargo(*words, env=None):
    """Runs cargo; what it says of its progress is shown, what its program prints is returned."""
    done = subprocess.run(["cargo", *map(str, words)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          env=os.environ | (env or {}), check=False)
    if done.returncode:
        raise Failed(f"cargo {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def micro(quick):
    """Runs criterion's benchmarks and returns what they found as a table."""
    metadata = json.loads(cargo("metadata", "--no-deps", "--format-version", "1"))
    results = pathlib.Path(metadata["target_directory"], "criterion")
    # What an earlier version has measured must not stand in this table.
    remove(results)
    packages = [word for crate in CRATES for word in ("--package", crate)]
    say("building and running the benchmarks of the parts")
    cargo("bench", "--quiet", "--bench", "*", *packages, "--", "--noplot", *(["--quick"] if quick else []))
    lines = [["part", "median", "per second", "least–most of the estimate"]]
    for found in sorted(results.glob("*/*/new/benchmark.json")):
        about, estimate = json.loads(found.read_text()), json.loads((found.parent / "estimates.json").read_text())["median"]
        bounds = estimate["confidence_interval"]
        spread = f"{duration(bounds['lower_bound'])}–{duration(bounds['upper_bound'])}"
        lines.append([about["title"], duration(estimate["point_estimate"]), rate(about["throughput"], estimate["point_estimate"]), spread])
    return "\n".join([*report.aligned(lines), "", *where()])


def duration(nanoseconds):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{report.number(nanoseconds / size)} {unit}"
    return f"{report.number(nanoseconds)} ns"


def rate(throughput, nanoseconds):
    if not throughput:
        return "–"
    (kind, count), = throughput.items()
    each = count * 1e9 / nanoseconds
    return f"{report.number(each / MIB)} MiB" if kind == "Bytes" else report.number(each)


def index(work, quick):
    """Makes the index in one process and asks it in another; returns the figures as a table."""
    directory, chunks = work / "index", CHUNKS // 100 if quick else CHUNKS
    remove(directory)
    directory.mkdir(parents=True)
    env = {"AXIOMFS_BENCH_DIR": str(directory), "AXIOMFS_BENCH_CHUNKS": str(chunks)}
    test = ("test", "--release", "--quiet", "--package", "axiomfs-repository", "--lib", "--")
    options = ("--ignored", "--exact", "--nocapture")
    try:
        said = ""
        for name in ("bench_generates", "bench_looks_up"):
            say(f"an index of {chunks:,} chunks: {name.replace('_', ' ')}")
            said += cargo(*test, f"tests::index_scale::{name}", *options, env=env)
    finally:
        remove(directory)
    found = {words[1]: [float(word) for word in words[2:]] for words in (line.split() for line in said.splitlines()) if words[:1] == ["figure:"]}
    lines = [["index", "figure", "must"], ["chunks", report.number(found["generate"][0]), "≥ 20,000,000"],
             ["making it", f"{report.number(found['generate'][1])} s", "–"],
             ["its size, in segments", f"{report.number(found['index_bytes'][0] / MIB)} MiB in {found['segments'][0]:.0f}", "–"],
             ["opening: read, time", f"{report.number(found['open_bytes'][0] / 1024)} KiB, {duration(found['open_us'][0] * 1000)}", "not the whole"],
             ["first lookup: read, time", f"{report.number(found['first_bytes'][0] / MIB)} MiB, {duration(found['first_us'][0] * 1000)}", "not the whole"]]
    for name, values in found.items():
        if name.startswith(("absent_", "present_")):
            which, threads = name.split("_")
            lines.append([f"lookups of {which} chunks, {threads} thread(s)",
                          f"{report.number(values[0])}/s ({values[1]:.2f} requests, {report.number(values[2])} bytes each)", "≥ 100,000/s"])
    lines.append(["blocks in memory", f"{report.number(found['cached_bytes'][0] / MIB)} MiB", "–"])
    lines.append(["peak memory of the process", f"{report.number(found['peak_kib'][0] / 1024)} MiB", "≤ 128 MiB"])
    return "\n".join([*report.aligned(lines), "", *where()])


def where():
    facts = machine.facts(ROOT, [])
    return [f"Commit {facts['commit']}, {facts['cpus']} × {facts['cpu']}, {facts['memory_bytes'] >> 30} GiB, Linux {facts['kernel']}, {facts['filesystem']}, "
            f"{facts['versions']['rustc']}"]
