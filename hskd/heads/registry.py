"""Registry of the kinds of head."""

from __future__ import annotations

from collections.abc import Sequence

from hskd import plugins, registry
from hskd.heads.base import Head


class HeadRegistry(registry.Registry[type[Head]]):
    """Registry of the kinds of head. Decorate a class with ``@HEADS.register`` to add it."""

    def register(self, head: type[Head]) -> type[Head]:
        """Add a kind of head under its ``kind``.

        Raises:
            HskdError: another class has that name.
        """
        self.add(head.kind, head, head)
        return head


HEADS = HeadRegistry("head", plugins.HEADS)


def head_of(kind: str, label_names: Sequence[str] = (), metric_names: Sequence[str] | None = None) -> Head:
    """Make a head of a kind.

    Args:
        kind: name of the kind in the registry.
        label_names: names of the output columns.
        metric_names: the task's metrics; None for the kind's defaults.

    Raises:
        HskdError: there is no such kind.
    """
    metrics = {} if metric_names is None else {"metric_names": tuple(metric_names)}
    return HEADS[kind](label_names=tuple(label_names), **metrics)
