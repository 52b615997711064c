"""LibreSpeed's side of it: its command-line client against our test server, and a backend in PHP for our engine to measure against."""

import json
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

from bench.accuracy.outcome import Figures, Outcome
from bench.accuracy.testbed import SERVER, Bed
from bench.accuracy.watch import watch
from tests.debian import CACHE, program

BACKEND = Path(__file__).parent / "php"
SECONDS = 15
WORKERS = 20
"""More than the engine opens connections: each worker of PHP's server has one at a time."""
SETTINGS = ("post_max_size=0", "max_execution_time=0", "output_buffering=0", "display_errors=stderr")


@cache
def client() -> Path:
    """Return the command-line client. Raises: RuntimeError that says what to install."""
    return program("librespeed-cli", "usr/bin/librespeed-cli", since="trixie")


@cache
def php() -> tuple[str, dict[str, str]]:
    """Return PHP and its environment: the machine's own, else Debian's, unpacked beside the virtual environment.

    Raises: RuntimeError that says what to install.
    """
    if found := shutil.which("php"):
        return found, {}
    shown = subprocess.run(["apt-cache", "depends", "php-cli"], capture_output=True, text=True, check=False).stdout
    packages = [word for word in shown.split() if word.startswith("php") and word.endswith("-cli") and word != "php-cli"]
    if not packages:
        raise RuntimeError("There is no php here, and Debian's package php-cli is not known: install it.")
    libraries = f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    for package, name in (("libargon2-1", "libargon2.so.1"), ("libsodium23", "libsodium.so.23")):
        program(package, f"{libraries}/{name}")
    path = os.pathsep.join(str(CACHE / package / libraries) for package in ("libargon2-1", "libsodium23"))
    return str(program(packages[0], f"usr/bin/{packages[0].removesuffix('-cli')}")), {"LD_LIBRARY_PATH": path}


def serve_php(bed: Bed, port: int) -> None:
    """Start PHP's own web server with the backend, and wait until it listens."""
    path, environment = php()
    settings = [word for setting in SETTINGS for word in ("-d", setting)]
    # in a namespace of its own, for the workers outlive the server that started them
    command = ["unshare", "--pid", "--fork", "--kill-child", path, "-n", *settings, "-S", f"{SERVER}:{port}", "-t", str(BACKEND)]
    bed.serve(port, *command, environment={**environment, "PHP_CLI_SERVER_WORKERS": str(WORKERS)})


def measure(bed: Bed, port: int) -> Outcome:
    """Let the client measure download and upload, three connections at once, as it does by itself."""
    servers = bed.directory / "servers.json"
    server = {"id": 1, "name": "testbed", "server": f"http://{SERVER}:{port}/", "dlURL": "garbage", "ulURL": "empty"}
    servers.write_text(json.dumps([{**server, "pingURL": "empty", "getIpURL": "getIP"}]))
    said = bed.directory / "librespeed.json"
    command = [str(client()), "--local-json", str(servers), "--json", "--no-icmp", "--duration", str(SECONDS)]
    with said.open("w") as answer:
        watched = watch(bed, bed.start("client", *command, stdout=answer), deadline_s=4 * SECONDS)
    outcome = Outcome()
    outcome.cost(watched)
    if watched.exit_code:
        outcome.failure = f"librespeed-cli ended with {watched.exit_code}"
        return outcome
    (told,) = json.loads(said.read_text())
    outcome.latency_s = told["ping"] / 1e3 or None
    for direction, side in (("down", "download"), ("up", "upload")):
        outcome.figures[direction] = Figures(measured_bps=told[side] * 1e6 or None)
    return outcome
