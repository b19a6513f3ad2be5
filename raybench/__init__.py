"""Which training-efficiency technique pays, for my model, on my hardware?"""

__version__ = "0.1.0"
