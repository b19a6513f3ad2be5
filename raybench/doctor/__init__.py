"""Is a machine, or every node of a cluster, fit for a sweep? `__main__` is the command.

`facts` looks at a machine, `link` measures the network between two of them, `destination` tries the
place of the results, and `findings` tells what is wrong and what to do.
"""
