"""Parts of BatchingSession: rows of many callers, run together in the batch size that is fastest."""
