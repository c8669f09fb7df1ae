"""One opened device of the process: its context, its control thread, its memory, copies outside of requests."""
