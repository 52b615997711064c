"""The runner: performs the measurements of one line of a site, one at a time, and beside them what does not use the line.

Consumes: ticks of its site (stream TICKS, durable pull consumer), and what its lines claim (stream CLAIMS).
Publishes: claims of runs that any line may measure (stream CLAIMS), one result per run (stream RESULTS), progress while it
measures (core NATS), a heartbeat (bucket of runners).
"""
