"""The only folder that touches ``acl``: typed, checked calls for the current thread.

Nothing here imports asyncio; every function blocks the thread that calls it or returns at once.
"""
