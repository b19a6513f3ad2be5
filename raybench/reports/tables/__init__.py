"""The families' tables: a file a family, found by its name; `table(trials, epochs, threshold)`."""
