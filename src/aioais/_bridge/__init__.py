"""Threads and event loops, and nothing of devices: how work crosses from one to the other."""
