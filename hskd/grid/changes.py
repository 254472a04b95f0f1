"""Changes to a grid, such as another data folder, another teacher or fewer epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from hskd import safe_yaml
from hskd.errors import HskdError, brief, cut
from hskd.grid.spec import GridSpec


def parse_changes(written: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` texts into a dictionary; values are read as YAML.

    Raises:
        HskdError: a text has no ``=``, or its value is not YAML.
    """
    changes = {}
    for text in written:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise HskdError(
                f"--set {cut(text)}: expected KEY=VALUE, such as task.data=FOLDER or training.hsk_epochs=3."
            )
        try:
            changes[key.strip()] = safe_yaml.parse(value)[0]
        except yaml.YAMLError as error:
            raise HskdError(f"--set {cut(text)}: the value is not valid YAML: {error}") from None
    return changes


def changed(grid: GridSpec, changes: Mapping[str, Any]) -> GridSpec:
    """Return ``grid`` with other values at some keys.

    Args:
        grid: the grid.
        changes: value by dotted key, such as ``training.hsk_epochs`` or ``students.0.checkpoint``.

    Raises:
        HskdError: a key does not exist, or its value is not valid there.
    """
    if not changes:
        return grid
    # Unset keys stay unset, because that means something: a dimension that a sweep does not name is kept whole.
    content = grid.model_dump(mode="json", exclude_unset=True)
    whole = grid.model_dump(mode="json")
    for student, settings in zip(content.get("students", ()), grid.students, strict=False):
        student["kind"] = settings.kind
    for key, value in changes.items():
        path = key.split(".")
        if len(path) > safe_yaml.DEEPEST:
            raise HskdError(f"--set {cut(key)}: {len(path):,} levels; a grid has no key of more than a few.")
        _put(content, whole, path, key, value)
    try:
        return GridSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or first.get("ctx", {}).get("key", "")
        message = first["msg"].removeprefix("Value error, ").removesuffix(".")
        keys = ", ".join(f"--set {cut(key)}" for key in changes)
        raise HskdError(f"{keys}: {cut(where)}: {message} (got {brief(first['input'])}).") from None


def _put(node: Any, whole: Any, path: list[str], key: str, value: Any) -> None:
    """Put ``value`` at ``path`` below ``node``; lists that ``node`` lacks are taken from ``whole``."""
    head: Any = path[0]
    if isinstance(node, list):
        if not (head.isdecimal() and len(head) < 10) or int(head) >= len(node):
            raise HskdError(
                f"--set {cut(key)}: {cut(head)} is not one of the {len(node)} entries there, counted from 0."
            )
        head = int(head)
    elif not isinstance(node, dict):
        raise HskdError(f"--set {cut(key)}: there is nothing below {brief(node)} to change.")
    if len(path) == 1:
        node[head] = value
        return
    default = whole.get(head) if isinstance(whole, dict) else None
    if isinstance(node, dict) and node.get(head) is None:
        node[head] = default if isinstance(default, list) else {}
    _put(node[head], default, path[1:], key, value)


def own_inputs(
    grid: GridSpec, data: str | None = None, teacher: str | None = None, checkpoint: str | None = None
) -> dict[str, Any]:
    """Return the changes that give a grid other data, another model of the teacher, or another checkpoint of students.

    Raises:
        HskdError: a checkpoint is given, and no student is made from one.
    """
    changes: dict[str, Any] = {"task.data": data, "teacher.model": teacher}
    changes = {key: value for key, value in changes.items() if value is not None}
    return changes | (_replaced_checkpoint(grid, checkpoint) if checkpoint is not None else {})


def _replaced_checkpoint(grid: GridSpec, checkpoint: str) -> dict[str, Any]:
    """Return the changes that give ``checkpoint`` to every student made from a checkpoint.

    Raises:
        HskdError: there is no such student.
    """
    changes = {
        f"students.{i}.{field}": value
        for i, student in enumerate(grid.students)
        for field, value in (student.with_checkpoint(checkpoint) or {}).items()
    }
    if not changes:
        raise HskdError(
            f"--checkpoint {checkpoint}: grid {grid.name} has no student of kind tinybert, or of another kind that is "
            "made from a checkpoint."
        )
    return changes


def differences(old: Any, new: Any, key: str = "") -> dict[str, Any]:
    """Return the changes that turn the grid ``old`` into ``new`` by :func:`changed`; both are dumps of grids."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        parts: list[tuple[str, Any, Any]] = [(name, old[name], new[name]) for name in old]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(str(i), *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return {} if old == new else {key: new}
    changes: dict[str, Any] = {}
    for name, before, after in parts:
        changes |= differences(before, after, f"{key}.{name}" if key else name)
    return changes
