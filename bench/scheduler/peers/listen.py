"""Take what beat fires from its queue and write a line for each: `<schedule> <due> <when it was there>`."""

import ast
import json
import os
import time

import redis


def main() -> None:
    """Empty the queue, then listen until ended."""
    client = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"], socket_timeout=None)
    client.delete("celery")
    while True:
        _, message = client.blpop(["celery"])
        at = time.time()
        name, due_at = ast.literal_eval(json.loads(message)["headers"]["argsrepr"])
        print(name, due_at, at, flush=True)


if __name__ == "__main__":
    main()
