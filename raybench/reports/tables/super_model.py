"""The super_model family's table: that of the pruning family, which shows latencies too."""

from raybench.reports.tables.pruning import table as table
