"""python -m raybench, or raybench: lists the commands, and runs one."""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "compare": "tells which techniques pay for your model and data",
    "tune": "runs or resumes a sweep over a search space",
    "train": "trains one experiment",
    "submit": "runs tune, compare, train or doctor as a job on a Ray cluster",
    "report": "prints the tables of a sweep, or writes them as a page",
    "export": "packs a trained model, and writes its ONNX graph",
    "predict": "classifies images with a trained model",
    "techniques": "prints which techniques can be combined",
    "doctor": "tells whether this machine or a cluster is fit for a sweep",
    "bench": "measures the claims of the documentation on this machine",
}


def main() -> int:
    """Runs the command named by the first argument; returns the exit code if there is none."""
    name, *_ = [*sys.argv[1:2], ""]
    if name in COMMANDS:
        sys.argv = [f"raybench {name}", *sys.argv[2:]]
        runpy.run_module(f"raybench.{name}", run_name="__main__", alter_sys=True)
        return 0
    listed = "\n".join(f"  {name:12}{text}" for name, text in COMMANDS.items())
    usage = f"python -m raybench.COMMAND [--help], or raybench COMMAND [--help]\n\n{listed}"
    if name in ("", "-h", "--help"):
        print(usage)
        return 0
    from raybench.arguments.nearest import nearest

    print(f"raybench: no command {name!r}; {nearest(name, [*COMMANDS])}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
