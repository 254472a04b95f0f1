"""General distillation of a TinyBERT-style student: a narrow encoder learns a teacher's body on unlabelled text.

The authors of TinyBERT (arXiv 1909.10351) publish such students. This module makes one without access to a hub.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel, set_seed

from hskd.artifacts import SCHEMAS, build_artifact, read_record, write_record
from hskd.distill.projection import PROJECTION_FILE
from hskd.distill.trainer import HSKModule, HSKTrainer, mean_hsk_loss
from hskd.errors import HskdError
from hskd.fast import LeanEncoder, fast_training
from hskd.io import saving
from hskd.knowledge import KeptHSK, TeacherStates, select_hsk
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.runtime import RunOptions, autocast
from hskd.spec import HSKSpec, Layer, Shape
from hskd.students.general.narrow import narrow
from hskd.students.general.settings import GeneralSettings
from hskd.students.general.text import text_content
from hskd.tasks import TokenizedSplit, is_padded, model_inputs
from hskd.tasks.content import used_tokens
from hskd.tasks.text import chunks, documents
from hskd.teachers.fitting import require_fit
from hskd.teachers.forward import tokens_of
from hskd.teachers.loading import (
    load_tokenizer,
    load_weights,
    model_content,
    model_fingerprint,
    require_body,
)
from hskd.training import StageRecipe, clear_checkpoints, run_stage, training_arguments

GENERAL_FILE = "general.json"
_OTHER = "a general student of another teacher or text, or distilled with other settings"
_SAVE_STEPS = 200
_MEASURED = 256
"""Number of pieces, taken from the end, on which the loss is measured before and after training."""


class BodySource:
    """Knowledge source that runs an encoder without a head on every batch, in eval mode, and keeps its full HSK.

    Args:
        body: the teacher's body.
        sep_id: the tokenizer's id of ``[SEP]``.
        student_layers: ``L_S``.
        dtype: resolved precision of the body's forward pass (fp32 or bf16).
    """

    def __init__(self, body: PreTrainedModel, sep_id: int, student_layers: int, dtype: str) -> None:
        self._body = body
        self._sep_id = sep_id
        self._spec = HSKSpec.parse("all_all_all,precision=fp32")
        self.layers: tuple[Layer, ...] = self._spec.layers(Shape.of(body.config, student_layers))
        self._dtype = dtype

    @torch.no_grad()
    def kept(self, batch: Mapping[str, torch.Tensor]) -> KeptHSK:
        """Return the hidden states of every mapped layer and every real token."""
        self._body.eval()
        device = self._body.device
        inputs = model_inputs(batch, device)
        with autocast(self._dtype, device):
            top = max(layer.teacher for layer in self.layers)
            states = LeanEncoder(self._body).hidden_states(inputs, top, padded=is_padded(batch))
        real = inputs["attention_mask"].bool()
        mapped_states = {layer.teacher: states[layer.teacher][real].float() for layer in self.layers}
        return select_hsk(self._spec, self.layers, TeacherStates(tokens_of(batch, self._sep_id), mapped_states, {}))

    def targets(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Refuse the request, because a body has no prediction targets.

        Raises:
            HskdError: always.
        """
        raise HskdError("a teacher's body has no head, so it predicts nothing.")


def load_body(model_name: str) -> PreTrainedModel:
    """Load the encoder of a model without its head, in fp32 and eval mode.

    Raises:
        HskdError: the encoder cannot be loaded, or lacks a weight.
    """
    body, info = load_weights(model_name, AutoModel, "encoder")
    require_body(model_name, body, info)
    return body.eval()


def general_distill(
    model_name: str,
    settings: GeneralSettings,
    folder: Path,
    options: RunOptions,
    progress: Progress | None = None,
) -> Path:
    """Make a general student and save it like a hub checkpoint: encoder without head, tokenizer, ``fit_dense``.

    The student is initialised from the teacher's body (:func:`~hskd.students.general.narrow.narrow`). Then its hidden
    states learn, through ``W``, those of the body on unlabelled text. A killed run resumes from its last checkpoint.
    A finished student stays unchanged. A reporter that writes log files puts them into ``training`` in ``folder``.

    Args:
        model_name: the teacher, not fine-tuned: a local folder, a hub name, or ``offline:minilm``.
        settings: sizes, text and training settings.
        folder: the student's folder.
        options: device, precision, reporting.
        progress: receives the steps.

    Returns:
        ``folder``.

    Raises:
        HskdError: the model or the text cannot be loaded, the loss is not finite, or ``folder`` was not made by this
            function.
        MismatchError: ``folder`` holds another student, or an unfinished run of another student.
    """
    recipe = {
        "model": model_content(model_name),
        "settings": settings.model_dump(mode="json", exclude={"text"}),
        "text": text_content(settings.text),
        "dtype": options.dtype,
        "schema": SCHEMAS["general"],
    }
    progress = progress or Silent()

    def builder(partial: Path) -> None:
        tokenizer = load_tokenizer(model_name)
        split = chunks(documents(settings.text), tokenizer, settings.chunks, settings.chunk_tokens)
        body = load_body(model_name)
        require_fit(model_name, body, [split])
        teacher = model_fingerprint(body)
        set_seed(settings.seed)
        begin = time.perf_counter()
        start = narrow(body, settings.layers, settings.width, settings.heads, settings.ffn, split)
        module = HSKModule(_with_dropout(start.student, settings.dropout), body.config.hidden_size, settings.seed)
        if module.projection is not None and start.projection is not None:
            module.projection.load_state_dict(start.projection.state_dict())
        source = BodySource(body.to(options.device), split.sep_id, settings.layers, options.dtype)
        module.to(options.device)
        measured = split.take(range(max(0, len(split) - _MEASURED), len(split)))
        record: dict[str, Any] = {"seconds_to_fit": time.perf_counter() - begin}
        record["start_loss"] = mean_hsk_loss(module, measured, source, options.dtype)
        if settings.epochs:
            record |= _train(module, source, split, settings, partial / "training", options, progress)
        record["end_loss"] = mean_hsk_loss(module, measured, source, options.dtype)
        with saving(partial):
            module.student.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            if module.projection is not None:
                save_file(module.projection.state_dict(), partial / PROJECTION_FILE)
        write_record(
            partial / GENERAL_FILE,
            {
                "kind": "general",
                "model": model_name,
                "teacher": teacher,
                "settings": settings.model_dump(mode="json"),
                "chunks": len(split),
                "tokens": int(split.offsets[-1]),
                "tokens_seen": settings.epochs * int(split.offsets[-1]),
                "parameters": module.student.num_parameters(),
                **record,
                "seconds": record["seconds_to_fit"] + record.get("seconds_to_train", 0.0),
                "dtype": options.dtype,
                "device": str(options.device),
                "threads": torch.get_num_threads(),
                "made_by": provenance(),
            },
        )
        clear_checkpoints(partial / "training")

    return build_artifact(folder, recipe, builder, _OTHER, resumes=True, progress=progress)


def general_record(folder: Path) -> dict[str, Any]:
    """Read the record that ``general_distill`` wrote into a student's folder.

    Raises:
        HskdError: there is no record.
        CorruptionError: the record is damaged.
    """
    return read_record(folder / GENERAL_FILE, f"Delete {folder} and make the student again (hskd general).")


_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout",
             "mlp_dropout")  # fmt: skip
"""Configuration fields that hold dropout probabilities, for encoders of every type."""


def _with_dropout(student: PreTrainedModel, p: float) -> PreTrainedModel:
    """Return the student, rebuilt with dropout ``p``, because some encoders have no module for a dropout of 0."""
    for field in _DROPOUTS:
        if hasattr(student.config, field):
            setattr(student.config, field, p)
    with torch.random.fork_rng(devices=[]):  # All fresh weights are overwritten.
        built: PreTrainedModel = type(student)(student.config)
    built.load_state_dict(student.state_dict())
    return built.eval()


def _train(
    module: HSKModule,
    source: BodySource,
    split: TokenizedSplit,
    settings: GeneralSettings,
    folder: Path,
    options: RunOptions,
    progress: Progress,
) -> dict[str, Any]:
    recipe = StageRecipe.of(settings, options, epochs=settings.epochs, learning_rate=settings.lr)
    # Checkpoints are saved by steps because there may be only one epoch. The interval is a multiple of logging_steps,
    # so that a resumed run loses no part of a logged mean.
    arguments = training_arguments(folder, recipe, save_strategy="steps", save_steps=_SAVE_STEPS)
    with fast_training(module.student, used_tokens([split])):
        trainer = HSKTrainer(module, arguments, split, source, "general distillation")
        run = run_stage(trainer, progress)
    return {
        "steps": run.steps,
        "seconds_to_train": run.seconds,
        "first_loss": run.first_loss,
        "last_loss": run.last_loss,
    }
