"""The command line: parsing with `parse.parse`, help on one page, errors in one line."""
