"""The API: reads results, keeps schedules, asks for runs, and shows events as they happen.

Consumes: Postgres, the buckets of schedules and runners, and ticks, progress and results as they pass (core NATS).
Asks: the recorder about dead letters (core NATS, request and reply).
Publishes: schedules (bucket), manual ticks (stream TICKS).
"""
