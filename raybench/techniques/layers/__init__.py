"""Which layers a technique acts on, and the arithmetic of those that it puts in."""
