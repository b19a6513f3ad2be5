"""A model cut into stages that work on the chunks of one batch at the same time.

What stands in this room knows neither Ray nor who calls it:

    schedule.py    which stage does what with which chunk, and when: pure functions and a simulation
    balance.py     what every block costs, and where to cut
    batch_norm.py  running statistics when a batch comes in chunks
    codec.py       a tensor between two stages as few bytes
    boundary.py    what one stage sends to the next and gets from it, encoded and counted
    transport.py, shared_memory.py    how a message gets there
    stage.py       a stage: its blocks, its optimizer, and a step by its list of actions
    weight_gradients.py    the gradients that the zero bubble puts off
"""
