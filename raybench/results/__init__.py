"""The tables of a sweep: their schema, the single writer, the reader, and the Pareto front."""
