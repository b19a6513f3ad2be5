"""The source of a model given by its import path: its location and its hash.

Nothing is imported here, so a hash can be compared before any of the code runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import pkgutil
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from raybench.experiment import Experiment, nearest

SHIPPED = ("raybench", "trainers")  # every row already has their source, as `source_sha256`


def is_import_path(name: str) -> bool:
    """Whether a model's name is `package.module:factory`."""
    return ":" in name


def parts(name: str) -> tuple[str, str]:
    """Module and factory of an import path. Raises ValueError if the name is not one."""
    module, _, factory = name.partition(":")
    if all(part.isidentifier() for part in (*module.split("."), factory)):
        return module, factory
    advice = "a model of your own is given as package.module:factory"
    dotted = module.removesuffix(".py").replace("/", ".")
    if module.endswith(".py") and all(part.isidentifier() for part in dotted.split(".")):
        advice += f", here {dotted}:{factory or 'factory'}"
    raise ValueError(f"{name!r} is not an import path: {advice}")


def with_source(experiment: Experiment) -> Experiment:
    """The Experiment with the hash of its model's source; unchanged for a named model.

    Raises:
        ValueError: there is no such module, or its source has another hash than the Experiment.
    """
    given = experiment.model_source
    if not is_import_path(experiment.model):
        if given:
            raise ValueError(
                f"model_source is {given}, but {experiment.model} is a model by name: leave it out"
            )
        return experiment
    present = source_hash(experiment.model)
    if given not in ("", present):
        raise ValueError(other_source(experiment, present))
    return replace(experiment, model_source=present)


def other_source(experiment: Experiment, present: str) -> str:
    """The message for a model whose files differ from the Experiment's, with advice."""
    return (
        f"the source of {experiment.model} has changed: its hash was {experiment.model_source} and "
        f"is {present}; restore the old files, or train again with the present ones"
    )


def require_source(experiment: Experiment) -> None:
    """Raises ValueError if the Experiment lacks its model's source hash, or has another one."""
    if with_source(experiment) != experiment:
        raise ValueError(
            f"the Experiment of {experiment.model} lacks its model_source: train "
            "raybench.models.with_source(experiment)"
        )


@cache  # the process keeps the code that it imported, even if the files are edited meanwhile
def source_hash(name: str) -> str:
    """16 hex digits that change with the model's source.

    They cover the module's file and every file that it imports, directly or indirectly, from the
    same folder or package. Installed packages, raybench itself and data files do not count.

    Raises:
        ValueError: there is no such module.
    """
    module, _ = parts(name)
    file = located(module)
    digest = hashlib.sha256()
    root = file.parents[_depth(module, file)]
    for path in sorted({file, *_imported(module, file, root)}):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def located(module: str) -> Path:
    """The module's file. Raises ValueError with the nearest name if there is none."""
    importlib.invalidate_caches()  # the file may have been created just now
    names = module.split(".")
    folders: list[str] | None = None  # those of the package so far; None: all of sys.path
    spec = None
    for number in range(1, len(names) + 1):
        name = ".".join(names[:number])
        spec = _spec(name, folders)
        if spec is None:
            beside = [str(Path.cwd())] if folders is None else folders
            siblings = sorted(sibling.name for sibling in pkgutil.iter_modules(beside))
            where = "the current folder or among the installed packages"
            if number > 1:
                where = f"the package {'.'.join(names[: number - 1])}"
            advice = f"; {nearest(names[number - 1], siblings)}" if siblings else ""
            raise ValueError(f"there is no module {name} in {where}{advice}")
        folders = list(spec.submodule_search_locations or ())
    assert spec is not None
    if not spec.has_location or spec.origin is None:
        raise ValueError(f"{module} has no source file: name the module that has the factory")
    return Path(spec.origin).resolve()


def _spec(name: str, folders: list[str] | None) -> ModuleSpec | None:
    if folders is not None:
        return PathFinder.find_spec(name, folders)
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return None


def _depth(module: str, file: Path) -> int:
    """How many folders the file is below the folder from which its module is imported."""
    return module.count(".") + (file.stem == "__init__")


def is_installed(path: Path) -> bool:
    """Whether a file belongs to Python itself or to an installed package."""
    paths = sysconfig.get_paths()
    places = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(path.is_relative_to(place.resolve()) for place in places)


def _imported(module: str, file: Path, root: Path) -> set[Path]:
    """The files below `root` that the module imports, and those that they import."""
    files: set[Path] = set()
    if is_installed(file):
        return files
    waiting = [(module, file)]
    while waiting:
        importer, path = waiting.pop()
        for name in _names(importer, path):
            for at, below in _files(name, root):
                if below not in files:
                    files.add(below)
                    waiting.append((at, below))
    return files


def _names(module: str, file: Path) -> Iterator[str]:
    """Dotted names that the file imports, also inside functions, and its own module.

    `from a import b` gives a.b, which may be a module.
    """
    yield module
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # the import will report the line
        return
    packages = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = packages[: len(packages) + 1 - node.level] if node.level else []
            base = ".".join([*above, *(node.module.split(".") if node.module else [])])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def _files(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Module and file of each parent package of a dotted name, and of the name itself."""
    names = name.split(".")
    if names[0] in SHIPPED:
        return
    for number in range(1, len(names) + 1):
        base = root.joinpath(*names[:number])
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                yield ".".join(names[:number]), path.resolve()
                break
