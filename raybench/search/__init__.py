"""What a sweep decides and remembers, without Ray: the way in is `sweep.Sweep`."""
