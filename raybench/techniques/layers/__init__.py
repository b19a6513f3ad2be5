"""Which layers a technique acts on, and the arithmetic of the layers that it inserts."""
