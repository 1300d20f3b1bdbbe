"""A real S3 server for the run: SeaweedFS on free ports of 127.0.0.1, its data in a directory that goes with it."""

import http.client
import json
import os
import pathlib
import socket
import subprocess

from .machine import ROOT
from .system import Failed, cpu_seconds, remove, run, wait_for

ACCESS_KEY, SECRET_KEY = "AKAXIOMFSBENCH", "a-secret-for-one-run"


def install():
    """The path of `weed`, which is installed where the tests keep it, unless AXIOMFS_WEED names one."""
    named = os.environ.get("AXIOMFS_WEED")
    if named:
        return pathlib.Path(named)
    command = '. scripts/lib/prepare && need_s3_server >&2 && printf "%s" "$AXIOMFS_WEED"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout:
        raise Failed("SeaweedFS can't be installed")
    return pathlib.Path(done.stdout)


def free_port(taken):
    """A port that nobody uses, nor the one ten thousand above it, where the server speaks with itself.

    Both below those that the system gives to connections: one of them could have taken it before the server does.
    """
    for port in range(20_000 + os.getpid() * 37 % 2_000, 22_700):
        if port in taken:
            continue
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        taken.add(port)
        return port
    raise Failed("There are no free ports between 20000 and 22700")


class S3Server:
    """A running server with one bucket, `vault`. It is one of the daemons that the cleanup ends."""

    def __init__(self, weed, directory, cleanup):
        self.directory, self.cleanup = directory, cleanup
        remove(directory)
        directory.mkdir(parents=True)
        config = directory / "s3.json"
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        config.write_text(json.dumps({"identities": [{"name": "bench", "credentials": credentials,
                                                      "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}))
        taken = set()
        self.ports = {name: free_port(taken) for name in ("s3", "filer", "master", "volume")}
        command = [weed, "server", f"-dir={directory}", "-s3", f"-s3.config={config}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                   "-volume.max=100", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                   f"-s3.localSocket={directory}/s3.sock", f"-filer.localSocket={directory}/filer.sock"]
        command += [f"-{name}.port={port}" for name, port in self.ports.items()]
        with open(directory / "log", "ab") as log:
            self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
        cleanup.daemons.append(self.process)
        wait_for("An answer of the S3 server", self.answers, 60)

    def answers(self):
        if self.process.poll() is not None:
            said = (self.directory / "log").read_text(errors="replace").strip().splitlines()[-5:]
            raise Failed(f"The S3 server ended with exit code {self.process.returncode}: {' / '.join(said)}")
        try:
            return self.filer("POST", "/buckets/vault/") in (200, 201, 409) and self.filer("PUT", "/buckets/vault/ready", b"ready") < 300 \
                and self.filer("DELETE", "/buckets/vault/ready") < 300 and self.listens()
        except OSError:
            return False

    def listens(self):
        with socket.create_connection(("127.0.0.1", self.ports["s3"]), 1):
            return True

    def filer(self, method, path, body=None):
        """One request to the server's own interface, which needs no signature; returns the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["filer"], timeout=30)
        try:
            connection.request(method, path, body)
            return connection.getresponse().status
        finally:
            connection.close()

    def url(self, prefix):
        return f"s3://vault/{prefix}?endpoint=http://127.0.0.1:{self.ports['s3']}&region=us-east-1"

    def environment(self):
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def close(self):
        if self.process in self.cleanup.daemons:
            self.process.kill()
            self.process.wait()
            self.cleanup.daemons.remove(self.process)
        # It leaves sockets of its own in the directory for temporary files.
        for port in self.ports.values():
            for left in pathlib.Path("/tmp").glob(f"seaweedfs-*-grpc-{port + 10_000}.sock"):
                left.unlink(missing_ok=True)
        remove(self.directory)


def version(weed):
    return run([weed, "version"]).split()[2]
