"""What the README and the docs tell users to type: commands parse, spaces load, links lead on."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from raybench import compare, export, predict, report, submit, train, tune
from raybench.bench import __main__ as bench
from raybench.doctor import __main__ as doctor
from raybench.reports import technique_matrix
from raybench.search.overrides import Overrides
from raybench.search.space import load

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
PRESETS = {"monarch": "monarch", "low-rank": "monarch", "switch": "switch_vit"}


def commands() -> list[tuple[str, str]]:
    """Page and command line, where the line holds no placeholder."""
    lines = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        blocks = "\n".join(block for _, block in BLOCK.findall(text)).replace("\\\n", " ")
        inline = re.findall(r"`(python -m raybench[^`]*)`", text)
        for line in [*blocks.splitlines(), *inline]:
            if typed := re.search(r"python -m raybench\.\w+ .*", line.partition("#")[0]):
                lines.append((page, typed.group().strip()))
    # A recipe file is read while the command line is parsed, and only a study writes one.
    placeholder = re.compile(r"…|\b(BITS|SEED|NAME|FILE)\b|recipe\.json")
    return [line for line in lines if not placeholder.search(line[1])]


def parse(command: str) -> None:
    """Parses a command line without running it; a mistake is a SystemExit or a ValueError."""
    module, *arguments = shlex.split(command.removeprefix("python -m raybench."))
    commands = {
        "tune": tune,
        "train": train,
        "report": report,
        "bench": bench,
        "doctor": doctor,
        "compare": compare,
        "submit": submit,
        "export": export,
        "predict": predict,
        "techniques": technique_matrix,
    }
    commands[module].parse(arguments)


def python_block(page: str, begins: str) -> str:
    """The Python block of a page in which a line begins so."""
    blocks = [b for kind, b in BLOCK.findall((ROOT / page).read_text()) if kind == "python"]
    return next(block for block in blocks if re.search(f"^{begins}", block, re.MULTILINE))


@pytest.mark.parametrize(("page", "command"), commands(), ids=str)
def test_commands_parse(page, command, tmp_path, monkeypatch):
    if "nets:" in command:
        nets = python_block("docs/models_and_data.md", "def small")
        (tmp_path / "nets.py").write_text(nets)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
    parse(command)


def test_a_wrong_flag_does_not_parse():
    with pytest.raises(SystemExit):
        parse("python -m raybench.train pruning --prune.sparsity 0.8")


def test_the_flags_that_a_card_suggests_parse():
    cards = re.findall(r"\*\*Try\*\*: `([^`]*)`", (ROOT / "docs/techniques.md").read_text())
    assert len(cards) == 10
    for flags in cards:
        technique = flags.removeprefix("--").partition(".")[0]
        parse(f"python -m raybench.train {PRESETS.get(technique, 'pruning')} {flags}")


@pytest.mark.parametrize("page", ["README.md", "docs/spaces.md"])
def test_spaces_load(page, tmp_path):
    path = tmp_path / "space.py"
    path.write_text(python_block(page, "def space"))
    space = load(path, Overrides())
    assert space.objectives == {"accuracy": "max", "model_bytes": "min"}
    assert len({example.key() for example in space.examples}) > 50


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = (ROOT / page).parent / file
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [h.lower().replace(" ", "-") for h in headings], link


def test_the_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
