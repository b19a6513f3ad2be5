"""The pages that a newcomer follows, typed from top to bottom in a clone: every command works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from test_docs import BLOCK, ROOT, python_block

pytestmark = [pytest.mark.nightly, pytest.mark.ray, pytest.mark.timeout(3600)]


def typed(page: str) -> list[list[str]]:
    """The page's commands in order, each as its arguments."""
    blocks = [block for kind, block in BLOCK.findall((ROOT / page).read_text()) if not kind]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.partition("#")[0] for line in lines if line.startswith("python -m raybench")]
    return [[sys.executable, *shlex.split(line)[1:]] for line in commands]


@pytest.fixture
def clone(tmp_path):
    """A folder with what a clone has beside the package."""
    for name in ("search_spaces", "trainers", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("page", ["docs/start.md", "docs/models_and_data.md", "docs/techniques.md"])
def test_every_command_of_a_page_works_in_its_order(page, clone):
    if page == "docs/models_and_data.md":
        (clone / "nets.py").write_text(python_block(page, "def small"))
    commands = typed(page)
    assert commands
    for command in commands:
        done = subprocess.run(
            command,
            cwd=clone,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(clone), str(ROOT)])},
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-2000:]}"
    written = re.findall(r"--(?:html|onnx|store) (\S+)", " ".join(map(shlex.join, commands)))
    assert all((clone / name).stat().st_size for name in written)
