"""A student of the TinyBERT type by general distillation: a narrow BERT learns a teacher's body on unlabelled text.

TinyBERT (arXiv 1909.10351) publishes such students; where no hub can be reached, this makes one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel, set_seed

from hskd.artifacts import build, claim, content_fingerprint, read_json, write_json
from hskd.distill.trainer import HSKModule, HSKTrainer, mean_hsk_loss
from hskd.encoder import hidden_states
from hskd.errors import HskdError
from hskd.knowledge import KeptHSK, TeacherStates, select_hsk
from hskd.runtime import autocast, provenance
from hskd.spec import HSKSpec, Layer, Shape
from hskd.students.general import GeneralSettings
from hskd.students.loading import PROJECTION_FILE
from hskd.students.narrow import narrow
from hskd.tasks import TokenizedSplit, model_inputs
from hskd.tasks.text import chunks, documents
from hskd.teachers.forward import tokens_of
from hskd.teachers.loading import load_tokenizer, model_fingerprint, resolve_model
from hskd.training import Callbacks, training_arguments
from hskd.vocabulary import touched_rows

GENERAL_FILE = "general.json"
_RECIPE_FILE = "recipe.json"
_OTHER = "a general student of another teacher or text, or distilled with other settings"
_SAVE_STEPS = 200
_MEASURED = 256
"""Pieces, the last ones, on which the loss is measured before and after training."""


class BodySource:
    """Full HSK of an encoder without a head, run on every batch in eval mode.

    Args:
        body: the teacher's body.
        sep_id: the tokenizer's id of ``[SEP]``.
        student_layers: ``L_S``.
        dtype: precision of the body's forward pass, resolved.
    """

    def __init__(self, body: PreTrainedModel, sep_id: int, student_layers: int, dtype: str) -> None:
        config = body.config
        self._body = body
        self._sep_id = sep_id
        self._spec = HSKSpec.parse("all_all_all,precision=fp32")
        self.layers: tuple[Layer, ...] = self._spec.layers(
            Shape(student_layers, config.num_hidden_layers, config.hidden_size, 1, config.vocab_size)
        )
        self._dtype = dtype

    @torch.no_grad()
    def kept(self, batch: Mapping[str, torch.Tensor]) -> KeptHSK:
        """Every mapped hidden state of every real token."""
        self._body.eval()
        device = self._body.device
        inputs = model_inputs(batch, device)
        with autocast(self._dtype, device):
            states = hidden_states(self._body, inputs, max(layer.teacher for layer in self.layers))
        real = inputs["attention_mask"].bool()
        wanted = {layer.teacher: states[layer.teacher][real].float() for layer in self.layers}
        return select_hsk(self._spec, self.layers, TeacherStates(tokens_of(batch, self._sep_id), wanted, {}))

    def logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A body has none.

        Raises:
            HskdError: always.
        """
        raise HskdError("a teacher's body has no logits.")


def load_body(model_name: str) -> PreTrainedModel:
    """The encoder of a model without its head, in fp32, in eval mode.

    Raises:
        HskdError: it cannot be loaded.
    """
    try:
        body = AutoModel.from_pretrained(resolve_model(model_name), dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise HskdError(f"{model_name}: no encoder can be loaded from it: {str(error).splitlines()[0]}") from None
    return body.eval()  # type: ignore[no-any-return]


def general_distill(
    model_name: str,
    settings: GeneralSettings,
    folder: Path,
    *,
    dtype: str,
    device: torch.device,
    report_to: str = "none",
    begin_stage: Callable[[str, int], None] = lambda stage, steps: None,
    advance: Callable[[], None] = lambda: None,
) -> Path:
    """Make a general student and save it as a checkpoint of a hub has it: a bare BERT, its tokenizer, ``fit_dense``.

    Its start is cut out of the teacher's body; then its hidden states learn, through ``W``, those of the body on
    text without labels. A killed run goes on after its last checkpoint; a finished one is left as it is.

    Args:
        model_name: the teacher, not fine-tuned: a local folder, a hub name, or ``offline:minilm``.
        settings: sizes, text, rates.
        folder: where the student will lie.
        dtype: resolved: fp32, or bf16 for autocast.
        device: where it trains.
        report_to: a reporter of ``transformers.Trainer``.
        begin_stage: receives the stage's name and its number of steps.
        advance: called after every step.

    Raises:
        HskdError: the model or the text cannot be loaded, the loss is not finite, or ``folder`` was not made by this
            function.
        MismatchError: ``folder`` holds another student, or the beginning of one.
    """
    recipe = {
        "model": model_name,
        "settings": settings.model_dump(mode="json"),
        "text": None if settings.text is None or not settings.text.is_file() else content_fingerprint(settings.text),
        "dtype": dtype,
    }

    def builder(partial: Path) -> None:
        claim(partial / _RECIPE_FILE, recipe, _OTHER)
        tokenizer = load_tokenizer(model_name)
        split = chunks(documents(settings.text), tokenizer, settings.chunks, settings.chunk_tokens)
        body = load_body(model_name)
        teacher = model_fingerprint(body)
        set_seed(settings.seed)
        begin = time.perf_counter()
        start = narrow(body, settings.layers, settings.width, settings.heads, settings.ffn, split)
        _set_dropout(start.student, settings.dropout)
        module = HSKModule(start.student, body.config.hidden_size, settings.seed)
        if module.projection is not None and start.projection is not None:
            module.projection.load_state_dict(start.projection.state_dict())
        source = BodySource(body.to(device), split.sep_id, settings.layers, dtype)
        module.to(device)
        measured = split.take(range(max(0, len(split) - _MEASURED), len(split)))
        record: dict[str, Any] = {"seconds_to_fit": time.perf_counter() - begin}
        record["start_loss"] = mean_hsk_loss(module, measured, source, dtype)
        if settings.epochs:
            record |= _train(module, source, split, settings, partial, dtype, device, report_to, begin_stage, advance)
        record["end_loss"] = mean_hsk_loss(module, measured, source, dtype)
        module.student.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if module.projection is not None:
            save_file(module.projection.state_dict(), partial / PROJECTION_FILE)
        write_json(
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
                "dtype": dtype,
                "device": str(device),
                "threads": torch.get_num_threads(),
                "made_by": provenance(),
            },
        )
        shutil.rmtree(partial / "training", ignore_errors=True)

    build(folder, builder)
    if not (folder / _RECIPE_FILE).is_file():
        raise HskdError(f"{folder}: exists, and was not made by this command; choose another folder.")
    claim(folder / _RECIPE_FILE, recipe, _OTHER)
    return folder


def general_record(folder: Path) -> dict[str, Any]:
    """What ``general_distill`` wrote beside a student.

    Raises:
        HskdError: there is none.
    """
    return read_json(folder / GENERAL_FILE)  # type: ignore[no-any-return]


def _set_dropout(student: PreTrainedModel, p: float) -> None:
    student.config.hidden_dropout_prob = student.config.attention_probs_dropout_prob = p
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def _train(
    module: HSKModule,
    source: BodySource,
    split: TokenizedSplit,
    settings: GeneralSettings,
    partial: Path,
    dtype: str,
    device: torch.device,
    report_to: str,
    begin_stage: Callable[[str, int], None],
    advance: Callable[[], None],
) -> dict[str, Any]:
    arguments = training_arguments(
        partial / "training",
        epochs=settings.epochs,
        learning_rate=settings.lr,
        schedule="linear",
        batch_size=settings.batch_size,
        seed=settings.seed,
        dtype=dtype,
        device=device,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        report_to=report_to,
        # Not by epochs: there may be but one. A multiple of logging_steps, so that no part of a mean is lost.
        save_strategy="steps",
        save_steps=_SAVE_STEPS,
    )
    trainer = HSKTrainer(module, arguments, split, source)
    trainer.add_callback(Callbacks(on_step=advance))
    steps = settings.epochs * len(trainer.get_train_dataloader())
    begin_stage("general distillation", steps)
    set_seed(settings.seed)
    start = time.perf_counter()
    with touched_rows(module.student, [split.input_ids]):
        trainer.run()
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": steps,
        "seconds_to_train": seconds,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "clipped_share": trainer.clipped_share,
    }
