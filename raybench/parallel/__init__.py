"""How one training step is spread over workers."""
