"""Read YAML from untrusted sources: with limits on size and depth, and without tags or duplicate keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from hskd.errors import HskdError, brief, cut

LONGEST = 100_000
"""Maximum characters of a text. PyYAML reads about 200,000 characters per second."""
DEEPEST = 30
"""Maximum depth of nested lists and mappings."""
MOST = 20_000
"""Maximum number of values, with every alias expanded."""

_TAG = "tag:yaml.org,2002:"
_TAGS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge")}
_KEYS = {f"{_TAG}str", f"{_TAG}merge"}


def read(file: Path) -> str:
    """Return the text of a YAML file, up to one character more than :data:`LONGEST`.

    Raises:
        HskdError: the file is missing, cannot be read, or is not UTF-8 text.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            text = opened.read(LONGEST + 1)
    except FileNotFoundError:
        raise HskdError(f"{file}: no such file.") from None
    except UnicodeDecodeError as error:
        raise HskdError(f"{file}: not UTF-8 text ({error}).") from None
    except (OSError, ValueError) as error:
        raise HskdError(f"{cut(str(file))}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    return text


def parse(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the value of a YAML text, and its root node, whose nodes know their lines.

    Raises:
        yaml.YAMLError: the text is not YAML, or exceeds a limit of a settings file. The error names the line.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"more than {LONGEST:,} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _count(node, {})
        return loader.construct_document(node), node
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    @override
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        if self._nodes > MOST:
            raise _error(f"more than {MOST:,} values", self.get_mark())
        if self._depth > DEEPEST:
            raise _error(f"more than {DEEPEST} nested levels", self.get_mark())
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if node is not None and node.tag not in _TAGS:
            raise _error(f"the tag {node.tag} is not allowed; write the value without a tag", node.start_mark)
        return node  # type: ignore[no-any-return]

    @override
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[no-untyped-call]
        seen = set()
        for key, _ in node.value:
            if key.tag not in _KEYS:
                raise _error("a key that is not text; put it in quotes", key.start_mark)
            if key.value in seen:
                raise _error(f"the key {brief(key.value)} is written twice", key.start_mark)
            seen.add(key.value)
        return node

    @override
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)  # type: ignore[no-untyped-call]
            if isinstance(value, str):
                value.encode()
        except yaml.YAMLError:
            raise
        except Exception as error:  # such as an integer with too many digits, a thirteenth month or invalid Unicode
            raise _error(f"a value that cannot be read ({error})", node.start_mark) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise _error("a number that is not finite", node.start_mark)
        if isinstance(value, str) and "\0" in value:
            raise _error("a text with a NUL character", node.start_mark)
        return value


def _count(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of values in ``node``, with every alias expanded.

    Raises:
        yaml.YAMLError: there are more than ``MOST`` values, or an alias contains itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    size = sizes.get(id(node))
    if size is None:
        sizes[id(node)] = 0
        children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        size = sizes[id(node)] = 1 + sum(_count(child, sizes) for child in children)
    elif size == 0:
        raise _error("an alias that contains itself", node.start_mark)
    if size > MOST:
        raise _error(f"more than {MOST:,} values, with aliases expanded", node.start_mark)
    return size


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
