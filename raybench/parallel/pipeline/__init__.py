"""A model cut into stages that work on the chunks of one batch at the same time.

The modules of this folder import neither Ray nor their callers:

    schedule.py    which stage does what with which chunk, and when: pure functions and a simulation
    balance.py     the cost of every block, and where to cut
    batch_norm.py  running statistics when a batch comes in chunks
    codec.py       compresses a tensor between two stages
    boundary.py    encodes and counts what one stage sends to the next and gets from it
    transport.py, shared_memory.py    how a message gets there
    stage.py       a stage: its blocks, its optimizer, and a step by its list of actions
    weight_gradients.py    the weight gradients that the zero bubble defers
"""
