"""Many feeds in a row: reading a source ahead, and yielding the results in order."""
