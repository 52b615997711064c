"""A speed test with the unmodified library, step by step; what it would not notice is asked of the audit after each."""

import math
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from services.runner.confined import LONGEST_TEXT, Channel, Failed
from services.runner.speedtest_child.audit import Audit, Problem, Transfer, is_troubled, problems_of
from services.runner.speedtest_child.connections import connected, watched
from services.runner.speedtest_child.opener import Opener

NO_LATENCY_MS = 60_000
"""The library counts an hour for a request that failed: from here on its ping is no ping."""
MOST_UPLOAD_BYTES = 600_000_000
"""What the library holds in memory at once before it uploads; the real service makes it 150 MB."""
SMALL = {"size": 32_768, "count": 200, "threads": 2}
"""Uploads that even a very slow line completes."""
FINAL = {"rate_limited", "blocked", "line_down"}
"""Why nothing else would do better: another scheme, another test server."""


@dataclass(frozen=True)
class Order:
    """What is to be measured and how; see the options of the engine `speedtest`."""

    server_ids: list[int]
    exclude_ids: list[int]
    source_address: str | None
    timeout_s: float
    max_bytes: int
    https: bool
    download: bool
    upload: bool


class Run:
    """One speed test."""

    def __init__(self, library: Any, order: Order, audit: Audit, channel: Channel) -> None:
        """Put the audit between the library and its sockets."""
        self._library, self._order, self._audit, self._channel = library, order, audit, channel
        self._hung_s: dict[str, float] = {}
        build = library.build_opener
        library.build_opener = lambda *arguments: Opener(build(*arguments), audit, order.timeout_s)
        for name in ("SpeedtestHTTPConnection", "SpeedtestHTTPSConnection"):
            setattr(library, name, watched(getattr(library, name), audit, order.timeout_s))
        socket.create_connection = connected  # type: ignore[assignment] # of fewer ways to be called

    def measure(self) -> dict[str, Any]:
        """Return what the parent reads as an answer.

        Raises: Failed.
        """
        self._begin("connecting")
        if self._order.source_address:
            _must_be_ours(self._order.source_address)
        test, scheme = self._connect()
        self._begin("latency")
        answer: dict[str, Any] = {"latency_s": self._latency(test)}
        details: dict[str, Any] = {"configuration_over": scheme}
        if self._order.download:
            self._begin("download", test.config["length"]["download"])
            answer["download_bps"], answer["download_bytes"] = self._download(test)
            details["download_requests"] = len(self._audit.transfers)
        if self._order.upload:
            self._begin("upload", test.config["length"]["upload"])
            answer["upload_bps"], answer["upload_bytes"] = self._upload(test)
            details["upload_requests"] = len(self._audit.transfers)
            details["upload_unacknowledged_bytes"] = self._audit.unacknowledged_bytes
        details |= {f"{phase}_hung_s": round(seconds, 1) for phase, seconds in self._hung_s.items()}
        answer["hung"] = bool(self._hung_s)
        return {**answer, "server": _texts(test.results.server), "client": _texts(test.results.client), "details": details}

    def _begin(self, phase: str, length_s: float = 0) -> None:
        self._audit.begin(phase, length_s)
        self._channel.send("progress", phase=phase)

    def _connect(self) -> tuple[Any, str]:
        """Return the library's test with its list of servers, and whether they came over https or http."""
        if self._order.https:
            try:
                return self._open(secure=True), "https"
            except Failed as failure:
                if failure.kind in {"no_server", *FINAL}:
                    raise
                self._channel.log(f"https failed, trying http: {failure}")
        return self._open(secure=False), "http"

    def _open(self, *, secure: bool) -> Any:
        order = self._order
        try:
            test = self._library.Speedtest(source_address=order.source_address, timeout=order.timeout_s, secure=secure)
            _check(test.config)
            test.get_servers(list(order.server_ids), list(order.exclude_ids))
        except self._library.NoMatchedServers:
            raise self._nothing_listed() from None
        except (MemoryError, Failed):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the library's parsing stumbles over
            raise self._unusable(error) from None
        if not test.servers:
            raise self._nothing_listed()
        self._channel.log(f"{sum(map(len, test.servers.values()))} servers, client {test.config['client'].get('isp', 'unknown')}")
        return test

    def _unusable(self, error: Exception) -> Failed:
        last = self._audit.transfers[-1] if self._audit.transfers else Transfer("speedtest.net")
        where = last.url.partition("?")[0][:200]
        if last.problem:
            return Failed(last.problem.kind, f"{where} cannot be used: {last.problem.text}")
        text = f"{type(error).__name__}: {str(error)[:300]}"
        return Failed("bad_answer", f"{where} answered, but with values that make no sense: {text}")

    def _nothing_listed(self) -> Failed:
        order, last = self._order, self._audit.transfers[-1]
        if last.problem:
            return Failed(last.problem.kind, f"the list of servers cannot be had: {last.problem.text}")
        if order.server_ids:
            return Failed("no_server", f"none of the servers {', '.join(map(str, order.server_ids))} is in the list, or all are excluded")
        return Failed("no_server" if order.exclude_ids else "bad_answer", "the list of servers names none that can be used")

    def _latency(self, test: Any) -> float:
        try:
            test.get_best_server()
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the library catches only what it thought of
            raise Failed("bad_answer", f"choosing a server failed: {type(error).__name__}: {error}") from None
        milliseconds = test.results.ping
        if not 0 < milliseconds < NO_LATENCY_MS:
            problem = (problems_of(self._audit.transfers) or [Problem("unreachable", f"latency {milliseconds} ms")])[0]
            kind = problem.kind if problem.kind in FINAL else "unreachable"
            hosts = sorted({transfer.url.partition("/")[0] for transfer in self._audit.transfers})
            raise Failed(kind, f"no test server answered all its latency requests (tried {', '.join(hosts)}): {problem.text}")
        self._channel.log(f"server {test.results.server.get('url')}, {milliseconds} ms")
        return float(milliseconds) / 1000

    def _download(self, test: Any) -> tuple[float, int]:
        test.download()
        ended_at = time.monotonic()
        self._must_be_sound(test)
        return self._rate(test, test.results.download, test.results.bytes_received, 0, ended_at)

    def _upload(self, test: Any) -> tuple[float, int]:
        """Return the rate, and the bytes of both attempts if there had to be two."""
        test.upload()
        first_bytes = 0
        if self._is_undecided():
            first_bytes = max(0, test.results.bytes_sent - self._audit.unacknowledged_bytes)
            # On a slow line no upload may be complete when the time is up: nothing then tells it from a server that never reads
            self._channel.log("no upload was confirmed in time: once more, in small pieces")
            test.config["sizes"]["upload"] = [SMALL["size"]]
            test.config["counts"]["upload"] = test.config["upload_max"] = SMALL["count"]
            test.config["threads"]["upload"] = SMALL["threads"]
            self._begin("upload", test.config["length"]["upload"])
            test.upload()
        ended_at = time.monotonic()
        if self._is_undecided():
            raise self._unconfirmed(test)
        self._must_be_sound(test)
        rate, arrived = self._rate(test, test.results.upload, test.results.bytes_sent, self._audit.unacknowledged_bytes, ended_at)
        return rate, first_bytes + arrived

    def _is_undecided(self) -> bool:
        transfers = self._audit.transfers
        unsure = is_troubled(transfers) or not any(transfer.complete for transfer in transfers)
        return unsure and all(problem.kind == "timeout" for problem in problems_of(transfers))

    def _must_be_sound(self, test: Any) -> None:
        transfers, host = self._audit.transfers, urlsplit(test.results.server["url"]).netloc
        problems = problems_of(transfers)
        bad = sum(transfer.problem is not None for transfer in transfers)
        said = f"{bad} of {len(transfers)} {self._audit.phase}s at {host} failed"
        if is_troubled(transfers):
            raise Failed(problems[0].kind, f"{said}: {problems[0].text}")
        if problems:
            self._channel.log(f"{said}: {'; '.join(problem.text for problem in problems[:5])}")

    def _unconfirmed(self, test: Any) -> Failed:
        transfers, host = self._audit.transfers, urlsplit(test.results.server["url"]).netloc
        confirmed, carried = sum(transfer.complete for transfer in transfers), sum(transfer.carried_bytes for transfer in transfers)
        why = next((problem.text for problem in problems_of(transfers)), "no other was complete when the time was up")
        return Failed("unconfirmed", f"{host} confirmed {confirmed} of {len(transfers)} uploads of {carried} bytes together: {why}")

    def _rate(self, test: Any, rate_bps: float, carried: int, lost: int, ended_at: float) -> tuple[float, int]:
        """Return the library's rate and bytes, less what it handed to the kernel and never arrived, and less the time of what hung."""
        arrived = carried - lost
        if not (arrived > 0 and math.isfinite(rate_bps) and rate_bps > 0):
            raise Failed("bad_answer", f"the {self._audit.phase} from {test.results.server['url'][:200]} carried not one byte")
        self._channel.log(f"{self._audit.phase}: {arrived} bytes in {len(self._audit.transfers)} requests")
        took_s = carried * 8 / rate_bps
        counted_s = self._audit.counted_s(ended_at - took_s, ended_at)
        if counted_s < took_s:
            self._hung_s[self._audit.phase] = took_s - counted_s
            self._channel.log(f"{self._audit.phase}: {took_s - counted_s:.1f} s in which it waited for requests that hung do not count")
        return rate_bps * arrived / carried * took_s / counted_s, arrived


def _must_be_ours(address: str) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError as error:
        raise Failed("misconfigured", f"source_address {address} is not an address of this machine: {error}") from None


def _check(config: dict[str, Any]) -> None:
    """Refuse a configuration under which the library would hang, start threads without end or fill the memory.

    Raises: Failed.
    """
    upload_bytes = config["counts"]["upload"] * sum(config["sizes"]["upload"])
    for what, value, most in (
        ("seconds of download", config["length"]["download"], 300),
        ("seconds of upload", config["length"]["upload"], 300),
        ("threads of download", config["threads"]["download"], 128),
        ("threads of upload", config["threads"]["upload"], 128),
        ("downloads of each size", config["counts"]["download"], 128),
        ("bytes of upload", upload_bytes, MOST_UPLOAD_BYTES),
    ):
        if not 1 <= value <= most:
            raise Failed("bad_answer", f"speedtest.net's configuration asks for {value} {what}: that is no configuration to follow")


def _texts(attributes: dict[str, Any]) -> dict[str, str]:
    """Return what the server said as text, of bounded length: the parent knows what to make of it."""
    return {str(name)[:50]: str(value)[:LONGEST_TEXT] for name, value in list(attributes.items())[:50]}
