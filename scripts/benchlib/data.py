"""The data that is copied: a tree of real source files, and one file that is half text, a quarter binary, a quarter random.

The same machine makes the same data each time; another one makes data of the same kind. The digest tells.
"""

import glob
import hashlib
import os
import pathlib
import random
import shutil
import subprocess
import sysconfig

from .system import Failed, say

MIB = 1 << 20
LARGEST_SOURCE = 2 * MIB


class Source:
    """What was made: `tree` (a directory), `mixed` (a file), and what to say about them."""

    def __init__(self, directory, facts):
        self.tree = directory / "tree"
        self.mixed = directory / "mixed.bin"
        self.facts = facts

    def warm(self):
        """Reads all of it, so that copying measures the target and not this disk."""
        for directory, _, names in os.walk(self.tree):
            for name in names:
                pathlib.Path(directory, name).read_bytes()
        with open(self.mixed, "rb") as file:
            while file.read(MIB):
                pass


def make(directory, quick):
    files, mixed = (1_500, 48 * MIB) if quick else (12_680, 512 * MIB)
    directory = directory / ("quick" if quick else "full")
    found = source_files()
    if len(found) < files:
        raise Failed(f"Only {len(found)} source files are on this machine and {files} are needed: cargo fetch brings more")
    chosen = found[:files]
    recipe = hashlib.sha256("\n".join(f"{name} {size}" for name, _, size in found).encode())
    recipe.update(f"{files} {mixed} {binary_images()} 1".encode())
    stamp = directory / "recipe"
    if not (stamp.exists() and stamp.read_text() == recipe.hexdigest()):
        say(f"making the data in {directory}")
        shutil.rmtree(directory, ignore_errors=True)
        make_tree(directory / "tree", chosen)
        make_mixed(directory / "mixed.bin", found, mixed)
        stamp.write_text(recipe.hexdigest())
    facts = {"files": files, "tree_bytes": sum(size for _, _, size in chosen), "mixed_bytes": mixed, "recipe": recipe.hexdigest()[:16],
             "whole": not quick}
    return Source(directory, facts)


def source_files():
    """(name in the tree, path, size) of the source text on this machine: the cargo registry first, then the libraries of Python, C and Perl."""
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    roots = [("registry", root) for root in sorted(glob.glob(f"{home}/registry/src/*"))]
    roots += [("python", sysconfig.get_paths()["stdlib"]), ("include", "/usr/include"), ("perl", "/usr/share/perl")]
    found = []
    for label, root in roots:
        for directory, below, names in os.walk(root):
            below.sort()
            for name in sorted(names):
                path = os.path.join(directory, name)
                if not os.path.islink(path) and os.path.isfile(path) and is_source(path):
                    found.append((os.path.join(label, os.path.relpath(path, root)), path, os.path.getsize(path)))
    return found


def is_source(path):
    if path.endswith((".a", ".o", ".so", ".pyc", ".lib", ".dll")) or os.path.getsize(path) > LARGEST_SOURCE:
        return False
    with open(path, "rb") as file:
        return b"\0" not in file.read(4096)


def make_tree(tree, chosen):
    for name, path, _ in chosen:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def binary_images():
    """Big binaries of this machine: a Java image if there is one, else the compiler's libraries."""
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    return sorted(glob.glob("/usr/lib/jvm/*/lib/modules")) + sorted(glob.glob(f"{sysroot}/lib/librustc_driver*")) + sorted(glob.glob(f"{sysroot}/lib/libLLVM*"))


def make_mixed(path, found, size):
    with open(path, "wb") as file:
        write_text(file, found, size // 2)
        left = size // 4
        for image in binary_images():
            with open(image, "rb") as source:
                left -= file.write(source.read(left))
        if left:
            raise Failed("This machine has too few big binaries to make the data from")
        rng = random.Random(20_260_101)
        for _ in range(size // 4 // MIB):
            file.write(rng.randbytes(MIB))


def write_text(file, found, size):
    """Source text of `size` bytes. When all is used up it begins again in another order, so that no long stretch repeats."""
    order, rng, left = list(found), random.Random(1), size
    while left:
        # Not in the order of the tree: its files must not be found again as chunks of this one.
        rng.shuffle(order)
        for _, path, _ in order:
            with open(path, "rb") as source:
                left -= file.write(source.read()[:left])
            if not left:
                return
