"""Every kind of head by name."""

from __future__ import annotations

from collections.abc import Sequence

from hskd import plugins, registry
from hskd.heads.base import Head


class HeadRegistry(registry.Registry[type[Head]]):
    """The kinds of head. ``@HEADS.register`` above a class adds one."""

    def register(self, head: type[Head]) -> type[Head]:
        """Add a kind of head under its ``kind``.

        Raises:
            HskdError: another class has that name.
        """
        self.add(head.kind, head, head)
        return head


HEADS = HeadRegistry("head", plugins.HEADS)


def head_of(kind: str, label_names: Sequence[str] = (), metric_names: Sequence[str] | None = None) -> Head:
    """The head of a kind.

    Args:
        kind: its name in the registry.
        label_names: names of the output columns.
        metric_names: the task's metrics; None for those that the kind has by default.

    Raises:
        HskdError: there is no such kind.
    """
    metrics = {} if metric_names is None else {"metric_names": tuple(metric_names)}
    return HEADS[kind](label_names=tuple(label_names), **metrics)
