"""python -m raybench.techniques: what stands beside what, and what fits a model."""

import sys

from raybench.reports.technique_matrix import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
