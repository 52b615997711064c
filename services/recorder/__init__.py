"""The recorder: stores results in Postgres, each once.

Consumes: results and the server's word on exhausted ticks (streams RESULTS and ADVISORIES, durable pull consumers).
Publishes: messages that cannot be stored, with the reason (stream DEAD).
Answers: what the API asks about dead letters (core NATS, request and reply); it publishes them again, or drops them.
"""
