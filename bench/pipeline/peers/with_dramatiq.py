"""Dramatiq, its broker a Redis; it acknowledges a message when it is done."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.pipeline.peers import storing

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS_URL"]))
store = dramatiq.actor(storing.store)
send = store.send
