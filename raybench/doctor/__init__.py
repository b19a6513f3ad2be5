"""Is a machine, or every node of a cluster, fit for a sweep? `__main__` is the command.

`facts` inspects a machine, `link` measures the network between two machines, `destination` tests
the results folder or address, and `findings` lists problems, with advice.
"""
