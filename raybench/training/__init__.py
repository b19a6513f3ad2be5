"""How one experiment is trained: the way in is `loop.fit`."""
