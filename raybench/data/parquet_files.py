"""Hugging Face's Parquet layout: files with a column of encoded images and one of labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raybench.data.contents import Contents, Encoded, Listed, checked
from raybench.data.split_names import require_one_name, require_splits, some, split_of

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
ROWS = 64  # rows per read
ADVICE = "store each image's own bytes, as the datasets library does with a column of type Image"


def contents(folder: Path, files: list[Path], remarks: tuple[str, ...]) -> Contents:
    """The images of these files by split.

    Raises:
        ValueError: a file cannot be read or lacks a column, or a label is out of range.
    """
    by_split = _files_by_split(folder, files)
    cells: dict[str, list[Any]] = {}
    images: dict[str, list[tuple[Path, str]]] = {}
    declared: dict[tuple[str, ...], Path] = {}
    _require_all_parts(folder, files)
    for split, its_files in by_split.items():
        for file in its_files:
            schema, label_cells, label_column = _labels(file)
            declared.setdefault(_class_names(schema, label_column), file)
            cells.setdefault(split, []).extend(label_cells)
            images.setdefault(split, []).append((file, _image_column(file, schema)))
    if not any(cells.values()):
        raise ValueError(f"--data {folder}: its Parquet files have no rows")
    cells = {split: values for split, values in cells.items() if values}
    names, labels = _numbered(folder, cells, _one_list_of_names(folder, declared))
    splits = {
        split: Listed(labels=labels[split], images=partial(_images, images[split]))
        for split in cells
    }
    return checked(folder, Contents(class_names=names, splits=splits, remarks=remarks))


def _files_by_split(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """`test-00000-of-00001.parquet`, `cifar_test.parquet`, `default/test/0000.parquet` -> test."""
    splits: dict[str, str | None] = {}
    places: set[tuple[str, str]] = set()
    for file in files:
        parts = file.relative_to(folder).with_suffix("").parts
        level = next((i for i in reversed(range(len(parts))) if split_of(parts[i])), None)
        name = str(file.relative_to(folder))
        splits[name] = None if level is None else split_of(parts[level])
        above = parts[:-1] if level is None else parts[:level]
        places.add((splits[name] or "train", "/".join([*above, "*.parquet"])))
    if any(splits.values()):
        require_splits(folder, splits)
    require_one_name(folder, places)
    by_split: dict[str, list[Path]] = {}
    for file, split in zip(files, splits.values(), strict=True):
        by_split.setdefault(split or "train", []).append(file)
    return by_split


def _require_all_parts(folder: Path, files: list[Path]) -> None:
    """Raises ValueError if a part is missing, such as `test-00001-of-00002`."""
    present = {str(file.relative_to(folder)) for file in files}
    for name in sorted(present):
        part = re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(\.\w+)", name)
        if part is None:
            continue
        before, number, between, count, ending = part.groups()
        for other in range(int(count)):
            expected = f"{before}{other:0{len(number)}}{between}{count}{ending}"
            if expected not in present:
                raise ValueError(f"--data {folder}: {expected} is missing beside {name}")


def _one_list_of_names(folder: Path, declared: dict[tuple[str, ...], Path]) -> list[str]:
    """The class names that the files declare.

    Raises:
        ValueError: two files declare different names or orders, or a name occurs twice.
    """
    lists = [names for names in declared if names]
    if len(lists) > 1:
        here, there = (declared[names].relative_to(folder) for names in lists[:2])
        raise ValueError(
            f"--data {folder}: {here} names the classes {some(lists[0])}, but {there} names them "
            f"{some(lists[1])}; give all files the same names in the same order"
        )
    names = list(lists[0]) if lists else []
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"--data {folder}: two classes have the name {twice[0]}; rename one")
    return names


def _labels(file: Path) -> tuple[pa.Schema, list[Any], str]:
    """The file's schema, its labels, and their column."""
    try:
        schema = pq.read_schema(file)
        column = _column(file, schema, LABEL_COLUMNS, "ClassLabel")
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise ValueError(
                f"--data: the column {column} of {file} holds {kind}: a label is one whole number "
                "from 0 on, or one name, per image"
            )
        return schema, pq.read_table(file, columns=[column]).column(0).to_pylist(), column
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--data: {file} is not a readable Parquet file ({reason})") from error


def _image_column(file: Path, schema: pa.Schema) -> str:
    """The column of encoded images, which may be a struct with a field `bytes`."""
    column = _column(file, schema, IMAGE_COLUMNS, "Image")
    kind = schema.field(column).type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        kind = kind.field(index).type if index >= 0 else kind
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column
    holds = f"{kind}"
    if _is_text(kind):
        holds = "text, such as URLs or paths"
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        holds = "lists"
    elif pa.types.is_struct(kind):
        holds = "structs without the field bytes"
    raise ValueError(f"--data: the column {column} of {file} holds {holds}, not images: {ADVICE}")


def _is_text(kind: pa.DataType) -> bool:
    is_one_of = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(kind) for is_kind in is_one_of)


def _column(file: Path, schema: pa.Schema, usual: tuple[str, ...], feature: str) -> str:
    for name in usual:
        if name in schema.names:
            return name
    declared = [name for name, kind in _features(schema).items() if kind.get("_type") == feature]
    if len(declared) == 1 and declared[0] in schema.names:
        return str(declared[0])
    raise ValueError(f"--data: {file} has the columns {schema.names}, none of {list(usual)}")


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The columns' descriptions in the Hugging Face metadata."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (ValueError, AttributeError):
        return {}


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    names = _features(schema).get(column, {}).get("names") or []
    return tuple(str(name) for name in names)


def _numbered(
    folder: Path, cells: dict[str, list[Any]], named: list[str]
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """The classes' names, and the labels of each split as their numbers."""
    kinds = {type(cell) for values in cells.values() for cell in values}
    if kinds == {str}:
        names = tuple(sorted({cell for values in cells.values() for cell in values}))
        number = {name: index for index, name in enumerate(names)}
        return names, {
            split: np.array([number[cell] for cell in values], np.int64)
            for split, values in cells.items()
        }
    if kinds == {bool} and not named:
        named = ["False", "True"]
    if str in kinds and not kinds <= {str, type(None)}:
        raise ValueError(f"--data {folder}: some labels are numbers and some are names")
    train = [cell for cell in cells.get("train", []) if isinstance(cell, int)]
    classes = len(named) or 1 + max(train, default=-1)
    if not named and classes > len(train) > 0:
        raise ValueError(
            f"--data {folder}: there is a label {classes - 1}, but only {len(train)} images to "
            "train on; number the classes from 0 on"
        )
    for split, values in cells.items():
        for row, cell in enumerate(values):
            if isinstance(cell, str):
                continue
            if not isinstance(cell, int) or not 0 <= cell < classes:
                raise ValueError(
                    f"--data {folder}: label {cell} of {split} image {row} is out of range; "
                    f"there are {classes} classes, numbered from 0"
                )
    names = tuple(named) or tuple(str(number) for number in range(classes))
    return names, {split: np.array(values, np.int64) for split, values in cells.items()}


def _images(files: list[tuple[Path, str]]) -> Iterator[Encoded]:
    for file, column in files:
        row = 0
        # Without read-ahead: a file may be a single row group of gigabytes.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
            for batch in parquet.iter_batches(ROWS, columns=[column], use_threads=False):
                for cell in batch.column(0).to_pylist():
                    content = cell["bytes"] if isinstance(cell, dict) else cell
                    if content is None:
                        raise ValueError(
                            f"--data: row {row} of {file} holds no image bytes: {ADVICE}"
                        )
                    yield Encoded(f"row {row} of {file}", content)
                    row += 1
