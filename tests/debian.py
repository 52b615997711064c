"""Programs from Debian's archive for the tests, without root and without touching the system.

They are downloaded once, by the machine's own apt and from the sources that it is set up for, and unpacked under the
virtual environment: `make clean` removes them.
"""

import fcntl
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(sys.prefix) / "debian"


def program(package: str, path: str, *, since: str | None = None) -> Path:
    """Return the program at `path` (such as `usr/bin/promtool`) of a Debian package, downloading it when it is not there yet.

    `since` is the first release of Debian that has the package: an older machine takes it from there.
    Only the package itself is unpacked, not what it depends on: for programs that need no more than the C library.
    Where there is no apt, a program of that name on PATH is used.
    Raises: RuntimeError that says what could not be done, and what to do instead.
    """
    name = Path(path).name
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        if found := shutil.which(name):
            return Path(found)
        raise RuntimeError(f"There is no apt-get here to fetch {name} with: install it yourself (Debian's package is {package}).")
    CACHE.mkdir(exist_ok=True)
    unpacked = CACHE / package
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may want it at once
        if not unpacked.is_dir():
            _fetch(package, unpacked, since)
    found_at = unpacked / path
    if not found_at.is_file():
        raise RuntimeError(f"Debian's package {package} has no {path}; it is unpacked in {unpacked}.")
    return found_at


def _fetch(package: str, target: Path, since: str | None) -> None:
    lists = CACHE / "apt"
    apt = _apt(lists, package)
    if since and subprocess.run(["apt-cache", *apt, "show", package], capture_output=True, check=False).returncode:
        where = ["apt-get", *apt, "indextargets", "--format", "$(SITE)", "Label: Debian", "Created-By: Packages"]
        site = subprocess.run(where, capture_output=True, text=True, check=True).stdout.partition("\n")[0]
        lists = CACHE / f"apt-{since}"
        lists.mkdir(exist_ok=True)
        (lists / "sources.list").write_text(f"deb {site} {since} main\n")
        apt = _apt(lists, package, "-o", f"Dir::Etc::SourceList={lists}/sources.list", "-o", "Dir::Etc::SourceParts=-")
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        _run(["apt-get", *apt, "download", package], Path(directory), package)
        (archive,) = Path(directory).glob("*.deb")
        _run(["dpkg", "-x", str(archive), f"{directory}/unpacked"], Path(directory), package)
        Path(directory, "unpacked").rename(target)  # whole or not at all


def _apt(lists: Path, package: str, *sources: str) -> list[str]:
    """Return the options of an apt that keeps its lists in this directory, and bring them up to date."""
    for directory in ("lists/partial", "archives/partial"):
        (lists / directory).mkdir(parents=True, exist_ok=True)
    options = ["-q", "-o", f"Dir::State::lists={lists}/lists", "-o", f"Dir::Cache={lists}", *sources]
    # else root's apt downloads as an account that may not enter this directory
    options += ["-o", "APT::Sandbox::User=root"]
    # always with fresh lists: an archive keeps only the newest version of a package
    _run(["apt-get", *options, "update"], lists, package)
    return options


def _run(command: list[str], directory: Path, package: str) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Debian's package {package} could not be fetched: {command[0]} took more than 300 s.") from None
    if done.returncode:
        raise RuntimeError(f"Debian's package {package} could not be fetched ({' '.join(command)}):\n{done.stdout}{done.stderr}")
