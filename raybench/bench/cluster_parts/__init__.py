"""Parts of the bench of clusters: each measures some of its figures on machines of its own."""
