"""Measures axiomfs beside the local filesystem, a FUSE filesystem that answers at once, and other programs.

Runs are paired: each contender does a session, then each the next one, so that a slow minute of the machine hits all
of them. Everything is made in one work directory and removed again; mounts and daemons never outlive the run.
"""

import argparse
import datetime
import json
import os
import pathlib
import sys

from . import data, growth, machine, parts, report, rows, smooth
from .contenders import Axiomfs, AxiomfsS3, Ext4, Null
from .peers import PEERS
from .system import Cleanup, Failed


def arguments():
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data and one run: tells that all works, not how fast")
    parser.add_argument("--runs", type=int, help="runs of each contender (default: 3, with --quick 1)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", choices=sorted(PEERS),
                        help=f"measure this program too and install it if it is missing: {', '.join(sorted(PEERS))}")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this contender (ext4, null, axiomfs or a --peer)")
    parser.add_argument("--session", action="append", default=[], choices=sorted(rows.SESSIONS), help="only this session")
    parser.add_argument("--growth", action="store_true", help="instead of the usual sessions: a million files, a directory of a million entries, a huge sparse file")
    parser.add_argument("--smooth", action="store_true", help="instead: answers beside copies, changes of the chain under load, CPU time when idle")
    parser.add_argument("--micro", action="store_true", help="instead: criterion's measurements of the parts")
    parser.add_argument("--index", action="store_true", help="instead: an index of 20,000,000 chunks")
    parser.add_argument("--store", choices=["local", "s3"], default="local", help="where axiomfs stores: a directory, or SeaweedFS on this machine")
    parser.add_argument("--config", type=pathlib.Path, help="settings file for axiomfs (default: its defaults)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--idle", choices=["default", "sleep", "poll", "both"], default="default",
                        help="how idle CPUs wait: as they do here, asleep at once (guest_halt_poll_ns = 0), or polling (200000) as on hosts outside micro-VMs; "
                        "both of the latter double the time")
    parser.add_argument("--without-poll", action="store_true", help="measure axiomfs also with its polling reader switched off, as axiomfs-waits")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/var/tmp/axiomfs-bench"), help="where data and stores go (default: %(default)s)")
    parser.add_argument("--axiomfs", type=pathlib.Path, help="use this binary instead of building one")
    parser.add_argument("--null-fs", type=pathlib.Path, help="use this binary instead of building one")
    return parser.parse_args()


def contenders_of(args, binaries, cleanup):
    ours = AxiomfsS3 if args.store == "s3" else Axiomfs
    null = binaries["null-fs"]
    contenders = [Ext4(args.work), Null(args.work, null, cleanup), Null(args.work, null, cleanup, "null-acl", ["--acl"]),
                  ours(args.work, binaries["axiomfs"], cleanup, args.config)]
    if args.without_poll:
        contenders.append(ours(args.work, binaries["axiomfs"], cleanup, args.config, "axiomfs-waits", {"AXIOMFS_POLL": "off"}))
    contenders += [variant for name in args.peer for variant in PEERS[name](args.work, cleanup)]
    if args.only:
        contenders = [one for one in contenders if one.name in args.only or one.name.split("-")[0] in args.only]
    return contenders


def sessions_of(args):
    return args.session or list(growth.SESSIONS if args.growth else smooth.SESSIONS if args.smooth else rows.USUAL)


def main():
    args = arguments()
    if args.micro or args.index:
        print(parts.micro(args.quick) if args.micro else parts.index(args.work, args.quick))
        return 0
    runs = args.runs or (1 if args.quick else 3)
    ways = ["sleep", "poll"] if args.idle == "both" else [args.idle]
    args.work.mkdir(parents=True, exist_ok=True)
    with Cleanup() as cleanup:
        binaries = machine.binaries(args.axiomfs, args.null_fs)
        source = data.make(args.work / "data", quick=args.quick)
        contenders = contenders_of(args, binaries, cleanup)
        for contender in contenders:
            contender.install()
        facts = machine.facts(args.work, contenders) | {"data": source.facts, "runs": runs}
        figures, requests, failures = rows.measure(contenders, source, runs, sessions_of(args), ways, cleanup.set_idle)
    result = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "machine": facts,
              "figures": figures, "requests": requests, "failures": failures}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(report.table(result, [one.name for one in contenders]))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
