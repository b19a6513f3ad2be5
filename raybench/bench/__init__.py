"""Does it pay on this machine? One file per benchmark; each measures both sides in one run."""
