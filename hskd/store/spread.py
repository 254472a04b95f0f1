"""Standard deviations of the values that a store keeps, by which the loss ``standardised`` divides."""

from __future__ import annotations

import torch

from hskd.errors import HskdError
from hskd.knowledge import Spread, kept_neurons
from hskd.store.derive import chunks
from hskd.store.reader import Store


def spread_of(store: Store, superset: Store | None) -> torch.Tensor:
    """Return the standard deviation of every kept number over the kept tokens, ``(n, k)`` fp32.

    It is computed in one pass over a store, and not saved. If the kept neurons differ between tokens, the result is
    ``(n, d_T)`` for all neurons, and the pass needs the superset.

    Args:
        store: a derived store.
        superset: the superset that it was derived from; None if it is not available.

    Raises:
        HskdError: the superset is needed and not given.
    """
    spread, manifest, spec = Spread(), store.manifest, store.spec
    assert spec is not None and manifest.student_layers is not None
    per_token = spec.width.fixed(manifest.teacher_width) is None
    if per_token and superset is None:
        raise HskdError(
            f"{store.folder}: the kept neurons differ between tokens, so the standard deviation of a neuron needs the "
            "superset; give the superset that the store was derived from, or another --hsk-loss."
        )
    source = superset if per_token and superset is not None else store
    held_rows = store.rows_with_hsk
    for rows in chunks(held_rows if source is store else source.rows(store.example_ids[held_rows]), source.lengths):
        if source is store:
            spread.add(store.kept(rows).values)
        else:
            states = source.states(rows, spec.length.needs_entropy)
            spread.add(kept_neurons(spec, spec.layers(manifest.shape(manifest.student_layers)), states))
    return spread.deviations()
