"""Results at an address of an object store; `place.opened` is the way in.

The engine works in a folder of this machine, the mirror folder, and `mirror` copies it.
"""
