"""Many devices behind one session: opening them, lanes, and one stream over all."""
