"""The servers and services of one machine, run by one command: `refresher up`.

Consumes nothing and publishes nothing: it starts NATS, PostgreSQL and the four services, restarts what dies, and stops
them in order.
"""
