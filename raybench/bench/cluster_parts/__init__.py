"""Parts of the cluster bench: each measures some of its figures on its own machines."""
