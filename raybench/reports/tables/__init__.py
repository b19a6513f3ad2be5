"""The families' tables: one file per family, with a function `table(trials, epochs, threshold)`."""
