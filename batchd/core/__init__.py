"""The deciding part. Pure: it knows no clock, pipe, disk, process or randomness.

Events come in, entries (durable facts) and commands (orders to the world) go out. See scheduler.py.
"""
