"""Reports on a sweep for people: tables, plots and the page."""
