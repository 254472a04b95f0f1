"""CUDA graphs by hand: a computation on a GPU is launched at once, instead of kernel by kernel from Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch.optim import AdamW

WARM_UP = 2
"""Calls of a shape that run the function itself, before it is captured. Libraries allocate their workspaces in them."""

Tensors = tuple[torch.Tensor, ...]


class Captured:
    """Runs a function of tensors. On a GPU, it is a CUDA graph for each key and shapes after ``WARM_UP`` calls.

    A graph repeats the same kernels on the same memory, so the function has to compute on the device only, and
    everything that varies between calls with the same key has to be in its tensors, or in memory that it reads.
    Random numbers differ from call to call. On other devices the function itself always runs.

    The results of a call are valid until the next call.

    Args:
        function: called as ``function(*tensors, key)``.
        device: the device of the tensors.
    """

    def __init__(self, function: Callable[..., Tensors], device: torch.device) -> None:
        self._function = function
        self._captures = device.type == "cuda"
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _Graph] = {}
        if self._captures:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *tensors: torch.Tensor, key: Hashable) -> Tensors:
        """Return the function's results for ``tensors``."""
        if not self._captures:
            return self._function(*tensors, key)
        kind = key, *(tensor.shape for tensor in tensors)
        graph = self._graphs.get(kind)
        if graph is None:
            calls = self._calls[kind] = self._calls.get(kind, 0) + 1
            if calls <= WARM_UP:
                return self._on_own_stream(tensors, key)
            graph = self._graphs[kind] = self._capture(tensors, key)
        for buffer, given in zip(graph.inputs, tensors, strict=True):
            buffer.copy_(given, non_blocking=True)
        graph.graph.replay()
        return graph.outputs

    def _on_own_stream(self, tensors: Tensors, key: Hashable) -> Tensors:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*tensors, key)
        current.wait_stream(self._stream)
        return outputs

    def _capture(self, tensors: Tensors, key: Hashable) -> _Graph:
        inputs, graph = tuple(tensor.clone() for tensor in tensors), torch.cuda.CUDAGraph()
        # Threads of a loader may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = self._function(*inputs, key)
        return _Graph(graph, inputs, outputs)


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors


class HeldAdamW(AdamW):
    """AdamW for a step that is captured: :meth:`apply` updates the parameters, and :meth:`step` does nothing.

    ``Trainer`` calls ``step`` after every batch, when the captured step has already updated the parameters. The
    learning rate is a tensor on their device, so that a scheduler can change it between two replays.

    Args:
        params: the parameters, or groups of them, on one device.
        lr: peak learning rate.
        options: further arguments of ``AdamW``.
    """

    def __init__(self, params: object, lr: float, **options: object) -> None:
        super().__init__(params, lr=torch.tensor(lr), **options)  # type: ignore[arg-type]
        for group in self.param_groups:
            device = group["params"][0].device
            group["lr"] = group["lr"].to(device)
            group["capturable"] = device.type == "cuda"

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Do nothing."""

    def apply(self) -> None:
        """Update the parameters by their gradients."""
        super().step()
