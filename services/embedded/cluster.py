"""`make cluster`: a system that survives the end of any of its processes, on this machine, for trying out.

Three NATS servers that keep every stream three times, two of each service, one API and one PostgreSQL, all on loopback. What dies
is started again; to see the others go on without it, stop it: `kill -STOP <pid>`.
"""

import json
import os
import shlex
import sys
from pathlib import Path

from services.embedded import nats, postgres, supervisor
from services.embedded.program import Program, data_directory, remembered_port, remembered_secret, write_whole
from services.embedded.system import API_PORT, DATABASE_VARIABLE, NATS_VARIABLE, System

SERVERS = ("nats-1", "nats-2", "nats-3")
SERVICES = ("recorder-1", "recorder-2", "runner-1", "runner-2", "api", "scheduler-1", "scheduler-2")
DIRECTORY = ".refresher-cluster"


def main() -> int:
    """Run the cluster until SIGINT or SIGTERM and return the exit code; its data is kept where it is started."""
    data = data_directory() if os.environ.get("REFRESHER_DATA_DIR") else Path(DIRECTORY).resolve()
    return supervisor.main(data, assemble)


def servers(data: Path, names: tuple[str, ...] = SERVERS) -> list[nats.Nats]:
    """Write the configurations of a cluster under `data` and return its servers."""
    return [_server(data, name, names) for name in names]


def _server(data: Path, name: str, names: tuple[str, ...]) -> nats.Nats:
    """Write the configuration of one server; as the embedded one's, what is acknowledged is on disk."""
    port, password = remembered_port(data, name), remembered_secret(data, "nats")
    routes = [f"nats-route://refresher:{password}@127.0.0.1:{remembered_port(data, f'{other}-route')}" for other in names]
    login = f'authorization {{ user: "refresher", password: "{password}" }}'
    directory = data / name
    directory.mkdir(mode=0o700, exist_ok=True)
    configuration = data / f"{name}.conf"
    write_whole(
        configuration,
        f'listen: "127.0.0.1:{port}"\n'
        f'http: "127.0.0.1:{remembered_port(data, f"{name}-monitor")}"\n'
        f'server_name: "{name}"\n'
        f"jetstream {{ store_dir: {json.dumps(str(directory), ensure_ascii=False)}, sync_interval: always }}\n"
        f'cluster {{ name: "refresher", listen: "127.0.0.1:{remembered_port(data, f"{name}-route")}", no_advertise: true\n'
        f"  {login}\n  routes: {json.dumps(routes)} }}\n"
        f"{login}\n"
        "logtime: true\n",
    )
    return nats.Nats(
        Program(name, (nats.binary(), "--config", str(configuration)), log=data / "logs" / f"{name}.log", port=port),
        f"nats://refresher:{password}@127.0.0.1:{port}",
    )


def assemble(data: Path) -> System:
    """Prepare every server and service, and say where each is going to be.

    Raises: ConfigurationError when a server cannot run here.
    """
    database, bus = postgres.prepare(data), servers(data)
    common = {NATS_VARIABLE: ",".join(server.url for server in bus), DATABASE_VARIABLE: database.url, "REFRESHER_NATS_REPLICAS": "3"}
    ports = {name: remembered_port(data, name, API_PORT if name == "api" else None) for name in SERVICES}
    for server in bus:
        monitor = remembered_port(data, f"{server.program.name}-monitor")
        supervisor.say(f"{server.program.name:<12} nats://127.0.0.1:{server.program.port}  http://127.0.0.1:{monitor}/healthz")
    supervisor.say(f"{'postgres':<12} 127.0.0.1:{database.program.port}")
    for name, port in ports.items():
        supervisor.say(f"{name:<12} http://127.0.0.1:{port}/health/ready")
    supervisor.say(f"the command line finds it with: export REFRESHER_DATA_DIR={shlex.quote(str(data))}")
    services = tuple(_service(name, port, common) for name, port in ports.items())
    programs = (database.program, *(server.program for server in bus))
    return System(programs, services, common[NATS_VARIABLE], database.url, ports, ())


def _service(name: str, port: int, common: dict[str, str]) -> Program:
    service = name.partition("-")[0]
    return Program(name, (sys.executable, "-m", f"services.{service}"), {**common, f"REFRESHER_{service.upper()}_PORT": str(port)})


if __name__ == "__main__":
    sys.exit(main())
