"""The process in which the speedtest-cli library runs, started by the engine `speedtest` as `python -m`.

Reads its order as one JSON object on stdin and writes one JSON line per message to stdout: `progress`, `log`, and at the
end either `answer` or `failure`. It lives beside the engines and not among them so that it imports neither pydantic nor
asyncio: it starts in a tenth of a second and leaves the processor to the library.
"""
