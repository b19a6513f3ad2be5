"""What people read of a sweep: tables, plots and the page."""
