"""Match the labels of a head to the outputs of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hskd.errors import MismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def label_permutation(label_names: Sequence[str], model_label_names: Sequence[str], where: str) -> list[int]:
    """Return the index of the model's output for each label.

    Args:
        label_names: the labels in the required order.
        model_label_names: the model's ``config.id2label`` values in the order of its outputs.
        where: names the model and the task in messages.

    Returns:
        ``p`` such that output ``p[i]`` means label ``i``. Names are compared ignoring case. Placeholder names
        (``LABEL_0``, ``LABEL_1``, ...) are assumed to be in the required order, with a warning.

    Raises:
        MismatchError: the names or the number of outputs do not match.
    """
    model, labels = list(model_label_names), list(label_names)
    for names, known in ((labels, model), ([w.lower() for w in labels], [m.lower() for m in model])):
        if sorted(names) == sorted(known) and len(set(known)) == len(known):
            return [known.index(name) for name in names]
    if model == [f"LABEL_{i}" for i in range(len(labels))]:
        warnings.warn(
            f"{where}: the model's labels have no names ({model}); taking them in the order of the task's: {labels}.",
            stacklevel=2,
        )
        return list(range(len(labels)))
    raise MismatchError(
        f"{where}: the model's labels {model} are not those of the task, {labels}. "
        "Use a model trained on this task, or correct id2label and label2id in the model's config.json."
    )


def permute_outputs(model: PreTrainedModel, permutation: list[int], where: str) -> None:
    """Reorder the classifier's outputs in place: output ``permutation[i]`` becomes output ``i``.

    Raises:
        MismatchError: the model has no linear classifier to reorder.
    """
    import torch
    from torch import nn

    if permutation == list(range(len(permutation))):
        return
    inside = set(model.base_model.modules())
    classifiers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module not in inside and module.out_features == len(permutation)
    ]
    if not classifiers:
        raise MismatchError(
            f"{where}: the model's labels are in another order than the task's, and it has no linear classifier to "
            "reorder; fine-tune a model with the task's labels."
        )
    with torch.no_grad():
        for parameter in classifiers[-1].parameters():
            parameter.copy_(parameter[permutation])
