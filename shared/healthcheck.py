"""Ask whichever service runs in this container whether it is ready: `python -m shared.healthcheck`.

Imports next to nothing: it starts every few seconds in every container.
"""

import http.client
import os
import ssl
import sys

PORTS = {"api": 8470, "scheduler": 8471, "runner": 8472, "recorder": 8473, "testserver": 8477}


def main() -> int:
    """Return 0 when a service here is ready, else 1 with the reason on stderr."""
    reason = "no service answers"
    for name, port in PORTS.items():
        try:
            connection = _connection(name, port)
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
        except OSError:
            continue
        if answer.status == http.client.OK:
            return 0
        reason = f"{name}: {answer.read(1000).decode(errors='replace')}"
    sys.stderr.write(reason + "\n")
    return 1


def _connection(name: str, port: int) -> http.client.HTTPConnection:
    """Return a connection to a service here; only the test server may speak TLS, and then with a certificate of another name."""
    port = int(os.environ.get(f"REFRESHER_{name.upper()}_PORT") or port)
    if os.environ.get(f"REFRESHER_{name.upper()}_CERTIFICATE_FILE"):
        anybody = ssl._create_unverified_context()  # noqa: S323 - it is this container, and what it says is no secret
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=4, context=anybody)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=4)


if __name__ == "__main__":
    sys.exit(main())
