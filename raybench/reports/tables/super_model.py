"""The super_model family's table: the pruning family's, which also shows latencies."""

from raybench.reports.tables.pruning import table as table
