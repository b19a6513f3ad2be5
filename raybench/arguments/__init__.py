"""The command line: read by `parse.parse`, helped in one page, refused in one line."""
