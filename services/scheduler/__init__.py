"""The scheduler: publishes a tick for every instant at which a schedule is due.

Consumes: the bucket of schedules, as it changes.
Publishes: one tick per schedule, site and instant (stream TICKS); any number of replicas publish the same ones.
"""
