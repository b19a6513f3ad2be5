"""Does it pay on this machine? One file a benchmark; each measures both sides in one run."""
