"""Everything wired, and an end in order."""

import asyncio
import logging
import os
import resource
import signal
import ssl

from services.testserver import lost
from services.testserver.answers import Answers
from services.testserver.connection import Connection
from services.testserver.door import Door
from services.testserver.echo import Echo
from services.testserver.listeners import listen, written
from services.testserver.metrics import Metrics
from services.testserver.settings import TestserverSettings
from services.testserver.site import FILES_PER_CONNECTION, Site
from services.testserver.tokens import Tokens
from shared.errors import ConfigurationError
from shared.listening import port_of

log = logging.getLogger(__name__)

OTHER_FILES = 64


async def serve(settings: TestserverSettings) -> None:
    """Serve until SIGTERM or SIGINT: then close the door, let transfers end for a few seconds, and cut the rest.

    Raises: ConfigurationError where it cannot listen, or a certificate or the token cannot be used.
    """
    context, token = _tls(settings), _token(settings)
    listeners = listen(settings)
    _allow_files(settings.testserver_connections)
    metrics, tokens = Metrics(), Tokens()
    udp_port = port_of(listeners.udp[0]) if listeners.udp else None
    scheme = "https" if context else "http"
    site = Site(settings, metrics, Answers(metrics=metrics, tokens=tokens, token=token, scheme=scheme, udp_port=udp_port))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lost.handle)
    stopped = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, _stop, stopped)
    doors = [
        Door(each, lambda: Connection(site), site.crowded, context=context, handshake_s=settings.testserver_idle_s)
        for each in listeners.tcp
    ]
    echoes = [await loop.create_datagram_endpoint(lambda: Echo(tokens, metrics), sock=each) for each in listeners.udp]
    urls = [f"{scheme}://{written(each)}/" for each in listeners.tcp]
    log.info("listening", extra={"urls": urls, "udp_port": udp_port, "token": token is not None})
    watching = asyncio.create_task(site.watch(), name="watch")
    await asyncio.wait({watching, ending := asyncio.ensure_future(stopped.wait())}, return_when=asyncio.FIRST_COMPLETED)
    for door in doors:
        door.close()
    await site.stop()
    for transport, _ in echoes:
        transport.close()
    log.info("stopped")
    ending.cancel()
    if watching.done():
        watching.result()  # it ends only by a bug, which must be seen
    watching.cancel()


def _stop(stopped: asyncio.Event) -> None:
    if stopped.is_set():  # told twice: there is nothing to save
        os._exit(1)
    stopped.set()


def _tls(settings: TestserverSettings) -> ssl.SSLContext | None:
    if settings.testserver_certificate_file is None:
        if settings.testserver_key_file:
            raise ConfigurationError("there is a key but no certificate: name both, with --cert and --key.")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.testserver_certificate_file, settings.testserver_key_file)
    except OSError as error:  # ssl.SSLError is one
        told = f"the certificate {settings.testserver_certificate_file} and its key cannot be used: {error}."
        raise ConfigurationError(told) from None
    return context


def _token(settings: TestserverSettings) -> str | None:
    if settings.testserver_token_file is None:
        return None
    token = settings.testserver_token_file.read_text(errors="replace").strip()
    if not token:
        raise ConfigurationError(f"the token file {settings.testserver_token_file} is empty: write a token into it.")
    return token


def _allow_files(connections: int) -> None:
    """Ask the kernel for as many files as there may be connections, where it gives fewer by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_PER_CONNECTION * connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
