"""Results at an address of an object store; `place.opened` is the entry point.

The engine writes to a folder on this machine, the mirror folder, and `mirror` copies it.
"""
