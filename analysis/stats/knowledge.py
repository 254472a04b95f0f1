"""Tables of a teacher's knowledge, from a superset store: importance of tokens and neurons, and energy.

The *energy* of hidden states is the sum of their squares. The HSK loss is a squared error, so the energy is the loss of
a student that outputs zeros. Stores are read in chunks, so memory does not grow with their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from hskd.errors import HskdError, MismatchError
from hskd.heads import head_of
from hskd.knowledge import TeacherStates, select_hsk
from hskd.selectors import LayerView
from hskd.selectors.width import Magnitude
from hskd.spec import HSKSpec
from hskd.store.derive import require_served
from hskd.store.reader import Store
from hskd.tasks import tokenizer_fingerprint

EXAMPLES = 500
"""Default number of examples to read. With more, the means over tokens no longer change visibly in a figure."""
PER_TOKEN, ONE_MASK = "largest of each token", "largest on average"
"""The two ways of keeping neurons that :func:`energy_by_neurons` compares."""

_CHUNK_BYTES = 2**26
_SHARES = np.linspace(0, 1, 21)


def sentences(store: Store, tokenizer: PreTrainedTokenizerBase, examples: int = 20) -> pd.DataFrame:
    """Return examples of a store as text.

    Returns:
        A row per example: example_id, tokens (their number), prediction (the teacher's label, or its number for a
        regression, or the labels of all words, or all labels of an example), text.

    Raises:
        MismatchError: ``tokenizer`` is not the tokenizer of the store.
        HskdError: ``examples`` is not positive.
    """
    _require_tokenizer(store, tokenizer)
    rows = _rows(store, examples)
    origin = store.manifest.origin
    predicted = head_of(origin.head, origin.label_names).predict(store.targets(rows).numpy())
    names = np.array(origin.label_names)
    if predicted.ndim == 2 and len(names):  # any number of labels an example
        predictions: Any = [" ".join(names[row > 0]) for row in predicted]
    else:
        predictions = names[predicted].tolist() if len(names) else list(predicted)
    if (starts := store.word_starts(rows)) is not None:
        words = np.add.reduceat(starts, np.cumsum(store.lengths[rows]) - store.lengths[rows])
        predictions = [" ".join(tags) for tags in np.split(np.array(predictions), np.cumsum(words)[:-1])]
    special = set(store.manifest.special_ids.values())
    ids = np.split(store.token_ids(rows), np.cumsum(store.lengths[rows])[:-1])
    return pd.DataFrame(
        {
            "example_id": store.example_ids[rows],
            "tokens": store.lengths[rows],
            "prediction": predictions,
            "text": [tokenizer.decode([i for i in row if i not in special]) for row in ids],
        }
    )


def token_importance(store: Store, example_id: int, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Return the attention that ``[CLS]`` pays each token of one example. Length selectors rank tokens by it.

    Returns:
        A row per attention layer and token: layer (1-based), position, piece (the token's text, without the marks of
        word pieces), starts_word, share (of 1, after softmax, mean over heads; sums to 1 over the tokens of a layer).

    Raises:
        HskdError: this is not a superset, or it holds no attention.
        MismatchError: the example is not in the store, or ``tokenizer`` is not the store's.
    """
    _require_tokenizer(store, tokenizer)
    _require_attention(store, range(1, store.manifest.teacher_layers + 1))
    states = store.states(store.rows(np.array([example_id])))
    pieces, starts = _pieces(tokenizer, states.tokens.input_ids)
    position = states.tokens.position
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "layer": layer,
                    "position": position,
                    "piece": pieces,
                    "starts_word": starts,
                    "share": shares.astype(np.float64),
                }
            )
            for layer, shares in states.attention.items()
        ],
        ignore_index=True,
    )


def kept_tokens(store: Store, example_id: int, spec: HSKSpec, student_layers: int) -> pd.DataFrame:
    """Return the tokens of one example that ``spec`` keeps.

    Returns:
        A row per kept student layer and token: student_layer, teacher_layer, layer (the attention layer that ranks
        the tokens; where the selector uses none, the layer that produced the teacher's state), position.

    Raises:
        HskdError: the store is not a superset, or cannot serve the spec.
        MismatchError: the example is not in the store.
    """
    manifest = store.manifest
    shape = manifest.shape(student_layers)
    require_served(store, spec, shape)
    layers = spec.layers(shape)
    kept = select_hsk(spec, layers, store.states(store.rows(np.array([example_id]))))
    return pd.DataFrame(
        [
            (layer.student, layer.teacher, layer.attention or max(layer.teacher, 1), int(position))
            for layer, positions in zip(layers, kept.positions.T, strict=True)
            for position in positions
        ],
        columns=["student_layer", "teacher_layer", "layer", "position"],
    )


def neuron_magnitude(store: Store, w: float = 0.1, examples: int = EXAMPLES) -> pd.DataFrame:
    """Return how large each neuron is, and how often it is among the largest of a token.

    Args:
        store: a superset.
        w: share of the neurons that counts as the largest of a token, selected as by the width selector ``magnitude``.
        examples: most examples to read, evenly over the store.

    Returns:
        A row per layer and neuron: layer, neuron, mean_abs (mean of ``|h|`` over the tokens), top_share (share of the
        tokens in which the neuron is among the largest; ``w`` on average over the neurons), rank (1 for the neuron of
        largest top_share in its layer).

    Raises:
        HskdError: this is not a superset, or ``w`` or ``examples`` is out of range.
    """
    selector = HSKSpec.parse({"width": {"selector": "magnitude", "w": w}}).width
    assert isinstance(selector, Magnitude)
    width, layers = store.manifest.teacher_width, store.manifest.layers
    size = np.zeros((len(layers), width))
    often = np.zeros((len(layers), width))
    tokens = 0
    for states in _chunks(store, examples):
        tokens += len(states.tokens.input_ids)
        for i, layer in enumerate(layers):
            hidden = states.hidden[layer]
            size[i] += hidden.abs().sum(dim=0, dtype=torch.float64).numpy()
            often[i] += np.bincount(
                selector.neurons(LayerView(states.tokens, layer, hidden)).flatten().numpy(), minlength=width
            )
    frame = pd.DataFrame(
        {
            "layer": np.repeat(layers, width),
            "neuron": np.tile(np.arange(width), len(layers)),
            "mean_abs": size.ravel() / tokens,
            "top_share": often.ravel() / tokens,
        }
    )
    order = frame.sort_values(["layer", "top_share", "mean_abs"], ascending=[True, False, False], kind="stable")
    return frame.assign(rank=order.groupby("layer").cumcount() + 1)


def energy_by_neurons(store: Store, examples: int = EXAMPLES) -> pd.DataFrame:
    """Return the share of a token's energy that a share of its neurons holds, as a mean over tokens.

    Returns:
        A row per layer, mask and number of neurons: layer, mask (``PER_TOKEN``: each token keeps its own largest
        neurons, as ``magnitude`` does; ``ONE_MASK``: all tokens keep the neurons that hold most on average), neurons
        (share of the neurons), energy (share of 1). On average, a random mask keeps the same share of energy as of
        neurons.

    Raises:
        HskdError: this is not a superset, or ``examples`` is not positive.
    """
    width, layers = store.manifest.teacher_width, store.manifest.layers
    energy_sums = {mask: np.zeros((len(layers), width)) for mask in (PER_TOKEN, ONE_MASK)}
    tokens = 0
    for states in _chunks(store, examples):
        tokens += len(states.tokens.input_ids)
        for i, layer in enumerate(layers):
            energy = states.hidden[layer].double().square()
            energy /= energy.sum(dim=1, keepdim=True)
            energy_sums[PER_TOKEN][i] += energy.sort(dim=1, descending=True).values.sum(dim=0).numpy()
            energy_sums[ONE_MASK][i] += energy.sum(dim=0).numpy()
    share = np.arange(1, width + 1) / width
    return pd.concat(
        [
            pd.DataFrame(
                {"layer": layer, "mask": mask, "neurons": share, "energy": np.sort(sums[i])[::-1].cumsum() / tokens}
            )
            for mask, sums in energy_sums.items()
            for i, layer in enumerate(layers)
        ],
        ignore_index=True,
    )


def energy_by_tokens(store: Store, examples: int = EXAMPLES) -> pd.DataFrame:
    """Return the share of a sentence's energy, and of ``[CLS]``'s attention, that its most attended tokens hold.

    Returns:
        A row per layer and share of tokens: layer, tokens (share of the tokens, most attended first), energy,
        attention (shares of 1, means over examples; between two numbers of tokens, interpolated). A layer whose
        attention the store does not hold has no rows.

    Raises:
        HskdError: this is not a superset, holds no attention for any of its layers, or ``examples`` is not positive.
    """
    # No attention produced the embedding output. As in a spec, the first layer's attention ranks its tokens.
    ranked_by = {layer: max(layer, 1) for layer in store.manifest.layers}
    _require_attention(store, ranked_by.values())
    layers = [layer for layer in ranked_by if ranked_by[layer] in store.manifest.attention_layers]
    share_sums = np.zeros((len(layers), 2, len(_SHARES)))
    read = 0
    for states in _chunks(store, examples):
        bounds = states.tokens.offsets[1:-1]
        read += len(bounds) + 1
        for i, layer in enumerate(layers):
            attention = np.split(states.attention[ranked_by[layer]].astype(np.float64), bounds)
            energy = np.split(states.hidden[layer].double().square().sum(dim=1).numpy(), bounds)
            for ranked, squares in zip(attention, energy, strict=True):
                order = np.argsort(-ranked, kind="stable")
                for j, values in enumerate((squares[order], ranked[order])):
                    kept = np.concatenate([[0], np.cumsum(values)]) / values.sum()
                    share_sums[i, j] += np.interp(_SHARES * len(values), np.arange(len(kept)), kept)
    return pd.concat(
        [
            pd.DataFrame({"layer": layer, "tokens": _SHARES, "energy": energy, "attention": attention})
            for layer, (energy, attention) in zip(layers, share_sums / read, strict=True)
        ],
        ignore_index=True,
    )


def _rows(store: Store, examples: int) -> np.ndarray:
    """Return at most ``examples`` rows, evenly spaced over the store."""
    if examples < 1:
        raise HskdError(f"examples = {examples}: expected a positive number of examples to read.")
    return np.linspace(0, len(store) - 1, min(examples, len(store))).round().astype(np.int64)


def _chunks(store: Store, examples: int) -> Iterator[TeacherStates]:
    """Yield the teacher's states of at most ``examples`` examples, in chunks of bounded size."""
    rows = _rows(store, examples)
    per_token = 4 * len(store.manifest.layers) * store.manifest.teacher_width
    before = np.cumsum(store.lengths[rows]) - store.lengths[rows]
    cuts = np.flatnonzero(np.diff(before * per_token // _CHUNK_BYTES)) + 1
    for part in np.split(rows, cuts):
        yield store.states(part)


def _require_attention(store: Store, layers: Iterable[int]) -> None:
    """Raise if a superset holds the attention of none of ``layers``. Reading states raises for derived stores."""
    stored_layers = store.manifest.attention_layers
    if store.manifest.kind == "superset" and not set(layers) & set(stored_layers):
        raise HskdError(
            f"{store.folder}: holds the attention of layers {list(stored_layers)}, and none of {sorted(set(layers))}; "
            "extract a superset with --attention-layers, or with neither --spec nor --attention-layers, which holds "
            "all."
        )


def _require_tokenizer(store: Store, tokenizer: PreTrainedTokenizerBase) -> None:
    digest, expected = tokenizer_fingerprint(tokenizer), store.manifest.origin.tokenizer
    if digest != expected:
        raise MismatchError(
            f"{store.folder}: its token ids come from the tokenizer {expected}, but this tokenizer is {digest}; give "
            "the tokenizer of the teacher that the store was made with."
        )


def _pieces(tokenizer: PreTrainedTokenizerBase, token_ids: np.ndarray) -> tuple[list[str], list[bool]]:
    """Return token ids as texts, and which of them start a word.

    WordPiece marks the pieces that continue a word; BPE and unigram mark those that start one.
    """
    tokens = tokenizer.convert_ids_to_tokens(token_ids.tolist())
    special = [token in tokenizer.all_special_tokens for token in tokens]
    if any(token.startswith(("Ġ", "▁")) for token in tokens):
        # The first word of a text has no mark; it follows a special token.
        after = [True, *special[:-1]]
        starts = [t.startswith(("Ġ", "▁")) or s or a for t, s, a in zip(tokens, special, after, strict=True)]
        return [token.lstrip("Ġ▁") for token in tokens], starts
    return [token.removeprefix("##") for token in tokens], [not token.startswith("##") for token in tokens]
