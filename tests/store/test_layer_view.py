"""A user's own selector gets the same view of a layer from a store and from the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from store.conftest import Setting

from hskd.distill.source import OnlineSource, StoreSource
from hskd.knowledge import KeptHSK
from hskd.selectors import LENGTH, WIDTH, LayerView, LengthSelector, WidthSelector, mix
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset
from hskd.tasks import sequential_batches


class LargestNorm(LengthSelector):
    """The ``k`` tokens whose hidden states have the largest L1 norm. LayerNorm makes all L2 norms nearly equal."""

    selector: Literal["largest_norm"] = "largest_norm"

    def scores(self, view: LayerView) -> np.ndarray:
        return view.hidden.double().abs().sum(dim=1).cpu().numpy()


class LayerMask(WidthSelector):
    """One random mask for each layer."""

    selector: Literal["layer_mask"] = "layer_mask"
    seed: int = 0

    def neurons(self, view: LayerView) -> torch.Tensor:
        width = view.hidden.shape[1]
        mask = np.sort(np.argsort(mix(self.seed, view.layer, np.arange(width)))[: self.count(width)])
        return torch.from_numpy(mask).expand(len(view.hidden), -1)


class TokenMask(WidthSelector):
    """A random mask for each token, drawn from its example, its position and its id."""

    selector: Literal["token_mask"] = "token_mask"

    def neurons(self, view: LayerView) -> torch.Tensor:
        tokens, width = view.tokens, view.hidden.shape[1]
        keys = [tokens.example_ids[tokens.example], tokens.position, tokens.input_ids]
        draw = mix(*(key[:, None] for key in keys), np.arange(width))
        return torch.from_numpy(np.sort(np.argsort(draw, axis=1)[:, : self.count(width)], axis=1))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    LENGTH.register(LargestNorm)
    WIDTH.register(LayerMask)
    WIDTH.register(TokenMask)
    yield
    for registry, name in ((LENGTH, "largest_norm"), (WIDTH, "layer_mask"), (WIDTH, "token_mask")):
        registry.remove(name)


def kept_twice(setting: Setting, spec: HSKSpec, folder: Path, precision: str) -> Iterator[tuple[KeptHSK, KeptHSK]]:
    """Return the selections from the teacher and from a derived store for each batch."""
    superset = setting.extract(folder / "superset", Superset((0, 1, 2), (), precision))
    offline = StoreSource(derive(superset, spec, 2, folder / "derived"), setting.train, 2)
    online = OnlineSource(setting.teacher, setting.train.sep_id, spec, 2)
    for order in sequential_batches(setting.train.lengths, 16):
        batch = setting.train.collate(order)
        yield online.kept(batch), offline.kept(batch)


@pytest.mark.parametrize("width", ["layer_mask", "token_mask"])
@pytest.mark.parametrize(("superset", "precision"), [("fp16", "fp16"), ("fp32", "fp16"), ("fp32", "int8")])
def test_offline_equals_online(setting: Setting, tmp_path: Path, superset: str, precision: str, width: str) -> None:
    spec = HSKSpec.parse(f"2l_3t_0.25w,length=largest_norm,width={width},precision={precision}")
    for online, offline in kept_twice(setting, spec, tmp_path, superset):
        assert torch.equal(online.counts, offline.counts)
        assert torch.equal(online.positions, offline.positions)
        assert online.neurons is not None and offline.neurons is not None
        assert torch.equal(online.neurons, offline.neurons)
        step = 2.0**-9 if precision == "fp16" else 2.0**-6  # one unit of the precision at the largest value here
        torch.testing.assert_close(online.values, offline.values, rtol=0, atol=step * float(online.values.abs().max()))


def test_the_largest_norms_are_kept(setting: Setting, tmp_path: Path) -> None:
    spec = HSKSpec.parse("1l_2t_all,length=largest_norm")
    superset = setting.extract(tmp_path / "superset", Superset((2,), (), "fp16"))
    states = superset.states(np.array([5]))
    norms = states.hidden[2].double().abs().sum(dim=1)
    kept = derive(superset, spec, 2, tmp_path / "derived").kept(np.array([5]))
    assert kept.positions[:, 0].tolist() == sorted(norms.topk(2).indices.tolist())


def test_masks_differ_between_layers_and_tokens(setting: Setting, tmp_path: Path) -> None:
    for width in ("layer_mask", "token_mask"):
        spec = HSKSpec.parse(f"2l_3t_0.25w,length=left,width={width}")
        [neurons, *_] = [kept.neurons for kept, _ in kept_twice(setting, spec, tmp_path / width, "fp16")]
        assert neurons is not None
        per_layer = len(neurons.unique(dim=1)[0])
        per_token = len(neurons.unique(dim=0))
        assert (per_layer, per_token > 1) == ((2, False) if width == "layer_mask" else (1, True))


def test_what_keeps_all_needs_no_positions() -> None:
    for label, expected in (
        ("all_all_all", True),
        ("all_all_all,length=attention", True),
        ("all_all_all,length=largest_norm", True),
        ("all_all_all,length=attention_no_sep", False),
        ("all_2t_all,length=left", False),
        ("all_1t_all,length=cls", False),
    ):
        assert HSKSpec.parse(label).length.keeps_all is expected, label
