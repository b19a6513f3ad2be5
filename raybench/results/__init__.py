"""The tables of a sweep: their schema, the one writer, the reader, and what is read off them."""
