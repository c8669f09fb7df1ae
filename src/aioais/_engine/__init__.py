"""The engine of one session: from a request in the line to its result, on two threads."""
