"""From what a caller passes as feeds to arrays and a plan; no device is touched here."""
