"""python -m raybench.techniques: which techniques can be combined, and which fit a model."""

import sys

from raybench.reports.technique_matrix import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
