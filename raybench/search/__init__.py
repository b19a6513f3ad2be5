"""A sweep's decisions and state, without Ray; start with `sweep.Sweep`."""
