"""Training of one experiment; start with `loop.fit`."""
