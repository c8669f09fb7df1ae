"""Typed and checked calls to ``acl``. No other package of the library touches ``acl``.

Nothing here imports asyncio. Every function runs in the thread that calls it, and either blocks or returns at once.
"""
