"""Measure the effect of each speed optimisation: a step of the HSK stage with one of them left out.

The steps are those of ``1l_10t_0.1w`` on one batch of 32, with random weights in the paper's shapes. They run as in the
engine, but without ``Trainer``. The variants take turns in one process. A factor is the median, over the rounds, of a
variant's time divided by the time of the step with all optimisations.

    python -m hskd.benchmarks.ablation --rounds 12
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import hskd.fast.layers
from hskd.benchmarks.data import draw_lengths, vocabulary_of
from hskd.benchmarks.models import student_of
from hskd.benchmarks.shapes import SIZES
from hskd.cli.progress import tables
from hskd.distill.losses import hsk_loss
from hskd.distill.trainer import HSKModule
from hskd.fast.dropout import cheap_dropout
from hskd.fast.embeddings import compact_embeddings
from hskd.fast.encoder import LeanEncoder, compiled_layer
from hskd.fast.layers import run_layer
from hskd.knowledge import KeptHSK
from hskd.runtime import autocast, resolve_dtype

CPU = torch.device("cpu")
BATCH, KEPT_TOKENS, NEURONS, TEACHER_WIDTH = 32, 10, 76, 768
SETTINGS = {"pad64": 64, "cola": None}
"""Tokens that every example is padded to; None pads to the longest example of the batch."""


@dataclass(frozen=True)
class Variant:
    """A step with some optimisations left out."""

    name: str
    all_rows: bool = False
    torch_dropout: bool = False
    torch_attention: bool = False
    whole_layer: bool = False
    stock_forward: bool = False
    fused: bool = True
    compiled: bool = False


VARIANTS = (
    Variant("everything"),
    Variant("every embedding row trained", all_rows=True),
    Variant("torch's dropout, in attention too", torch_dropout=True),
    Variant("torch's attention", torch_attention=True),
    Variant("every token in the last layer", whole_layer=True),
    Variant("AdamW not fused", fused=False),
    Variant("nothing of these", True, True, True, True, True, False),
    Variant("everything, and torch.compile", compiled=True),
)


def batch_of(pad_to: int | None) -> tuple[dict[str, torch.Tensor], KeptHSK]:
    """Return the inputs of one batch with CoLA's lengths, and random targets."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.from_numpy(np.sort(draw_lengths("cola", 50 * BATCH))[25 * BATCH : 26 * BATCH].astype(np.int64))
    width = pad_to or int(lengths.max())
    mask = (torch.arange(width) < lengths[:, None]).long()
    vocabulary = torch.from_numpy(vocabulary_of("cola").astype(np.int64))
    ids = vocabulary[torch.randint(len(vocabulary), mask.shape, generator=generator)] * mask
    counts = (lengths - 1).clamp(max=KEPT_TOKENS)
    positions = torch.cat([torch.arange(int(count)) for count in counts])[:, None]
    values = torch.randn(len(positions), 1, NEURONS, generator=generator)
    neurons = torch.rand(len(positions), 1, TEACHER_WIDTH, generator=generator).topk(NEURONS).indices
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return inputs, KeptHSK((0,), counts, positions, values, neurons)


def _torch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attended: torch.Tensor | None,
    scaling: float,
    dropout: nn.Module,
) -> torch.Tensor:
    p = float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]
    context = F.scaled_dot_product_attention(query, key, value, attended, p, scale=scaling)
    return context.transpose(1, 2).flatten(2)


@contextlib.contextmanager
def stepper(variant: Variant, kind: str, pad_to: int | None, dtype: str) -> Iterator[Callable[[], float]]:
    """Yield a function that makes one step and returns its seconds."""
    inputs, kept = batch_of(pad_to)
    student = student_of(kind, SIZES["full"]).train()
    top = student.config.num_hidden_layers
    kept = KeptHSK((top,), kept.counts, kept.positions, kept.values, kept.neurons)
    with contextlib.ExitStack() as stack:
        if not variant.all_rows:
            stack.enter_context(compact_embeddings(student, [vocabulary_of("cola")]))
        encoder = LeanEncoder(student, compiled_layer() if variant.compiled else run_layer)
        module = HSKModule(student, TEACHER_WIDTH, encoder=encoder)
        if not variant.torch_dropout:
            stack.enter_context(cheap_dropout(module))
        parameters = list(module.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=variant.fused)

        def loss() -> torch.Tensor:
            if variant.stock_forward:
                states = student.base_model(**inputs, output_hidden_states=True).hidden_states
                return hsk_loss(states, kept, module.projection)
            if variant.whole_layer:
                return hsk_loss(encoder.hidden_states(inputs, top), kept, module.projection)
            return module(kept, **inputs)  # type: ignore[no-any-return]

        def step() -> float:
            attend = hskd.fast.layers._attend
            if variant.torch_attention:
                hskd.fast.layers._attend = _torch_attention
            try:
                start = time.perf_counter()
                with autocast(dtype, CPU):
                    value = loss()
                value.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                return time.perf_counter() - start
            finally:
                hskd.fast.layers._attend = attend

        yield step


def main() -> None:
    """Measure all variants and print a table with a column per student, length setting and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which takes minutes")
    options = parser.parse_args()
    variants = [variant for variant in VARIANTS if options.compile or not variant.compiled]
    dtypes = ["fp32", "bf16"] if resolve_dtype("auto", CPU) == "bf16" else ["fp32"]
    settings = [(kind, at, dtype) for kind in ("tinybert4", "rosita6") for at in SETTINGS for dtype in dtypes]
    table = Table("left out", *(" ".join(setting) for setting in settings))
    columns = []
    for kind, at, dtype in settings:
        with contextlib.ExitStack() as stack:
            steps = {v.name: stack.enter_context(stepper(v, kind, SETTINGS[at], dtype)) for v in variants}
            times = {name: [step() for _ in range(2)] for name, step in steps.items()}
            for _ in range(options.rounds):
                for name, step in steps.items():
                    times[name].append(step())
        base = np.array(times["everything"][2:])
        columns.append([f"{1000 * np.median(base):.0f} ms"])
        columns[-1] += [f"{np.median(np.array(times[v.name][2:]) / base):.2f}" for v in variants[1:]]
        print(kind, at, dtype, columns[-1], flush=True)
    for variant, cells in zip(variants, zip(*columns, strict=True), strict=True):
        table.add_row(variant.name, *cells)
    tables(width=180).print(table)


if __name__ == "__main__":
    main()
