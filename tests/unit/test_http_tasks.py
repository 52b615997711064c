"""The loop under the engine `http`: what waits is woken when it is time, or when something has come."""

import socket
import time

import pytest

from services.runner.http_child import exchange
from services.runner.http_child.connection import Connection, Endpoint
from services.runner.http_child.exchange import Exchange, Request
from services.runner.http_child.tasks import READ, Loop, Steps, Wait


def test_a_wait_that_is_yielded_again_with_an_earlier_moment_ends_then() -> None:
    """A body is looked at every second, also where its head might have taken ten."""
    near, far = socket.socketpair()
    with near, far:
        wait = Wait(time.monotonic() + 60, near, READ)

        def steps() -> Steps[list[bool]]:
            came = [(yield wait)]
            near.recv(1)
            for _ in range(2):
                wait.until = time.monotonic() + 0.05
                came.append((yield wait))
            return came

        far.send(b"x")
        loop, began = Loop(), time.monotonic()
        assert loop.finish(steps()) == [True, False, False]
        assert time.monotonic() - began < 30


def test_the_end_of_a_body_is_seen_though_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wake-ups are for large pieces, but what is left of a body may be less than one."""
    monkeypatch.setattr(exchange, "LOOK_EVERY_S", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection(Endpoint("here", socket.AF_INET, server.getsockname(), timeout_s=60))
        loop, began = Loop(), time.monotonic()
        loop.finish(connection.open())
        far, _ = server.accept()
        with far:

            def body() -> Steps[None]:
                talk, request = Exchange(connection), Request("GET", "/garbage", "here")
                yield from talk.drain((yield from talk.ask(request)), request)

            task = loop.start(body())
            far.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(999_999))
            while connection.received_bytes < 900_000:
                loop.run(time.monotonic() + 0.01)
            far.sendall(b"x")
            while not task.done and time.monotonic() - began < 10:
                loop.run(time.monotonic() + 0.01)
            assert task.done
            assert not task.problem
        connection.close()
