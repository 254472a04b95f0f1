"""Make TinyBERT-style students: a pretrained encoder, narrower than the teacher, with a fresh head for the task."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hskd.artifacts import SCHEMAS, build_artifact, write_record
from hskd.distill.projection import PROJECTION_FILE
from hskd.errors import HskdError, MismatchError
from hskd.io import saving
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.students.base import STUDENT_FILE
from hskd.students.pretrained.checkpoint import (
    checkpoint_config,
    checkpoint_fingerprint,
    checkpoint_tokenizer,
    load_checkpoint,
)
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.tasks import Task, tokenizer_fingerprint
from hskd.tasks.alignment import differ
from hskd.teachers.loading import load_config, load_tokenizer, save_classifier, save_tokenizer


def create_tinybert(
    settings: TinyBertSettings,
    task: Task,
    teacher: str,
    folder: Path,
    *,
    general: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make a TinyBERT-style student for a task and save it, tokenizer and ``student.json`` included.

    All weights of the body are the checkpoint's. The head is drawn from the seed. If the checkpoint has a
    ``fit_dense``, it is saved as ``fit_dense.safetensors`` in ``folder`` and initialises ``W`` in the HSK stage.

    Args:
        settings: the checkpoint, and the seed of the head.
        task: its labels name the outputs.
        teacher: a local folder, a hub name, or ``offline:minilm``. If the checkpoint has another tokenizer, the student
            keeps its own and learns from aligned hidden states (:func:`hskd.tasks.align`).
        folder: the student's folder; a finished student stays unchanged.
        general: folder of the general student that ``settings.general`` describes.
        progress: receives messages about weights of the checkpoint that are unused or missing.

    Returns:
        ``folder``.

    Raises:
        HskdError: the checkpoint cannot be loaded or is incomplete, its ``fit_dense`` does not have the student's
            width, or ``folder`` was not made by this function.
        MismatchError: the checkpoint has no tokenizer and another vocabulary size than the teacher, or no embeddings
            for the tokens or token types of its tokenizer; or ``folder`` holds another student.
    """
    name = settings.checkpoint if settings.checkpoint is not None else str(general)
    tokenizer, is_own = _tokenizer_of(name, teacher)
    identity = {
        "kind": "tinybert",
        "settings": settings.model_dump(mode="json"),
        "checkpoint": checkpoint_fingerprint(name),
        "head": task.head.kind,
        "labels": list(task.label_names),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "schema": SCHEMAS["students"],
    }

    told = progress or Silent()

    def builder(partial: Path) -> None:
        if is_own:
            told.say(f"{name}: has another tokenizer than {teacher}; the student keeps it")
        loaded = load_checkpoint(name, task.head)
        _draw_head(loaded.model, settings.seed, pooler=not loaded.pooler)
        if loaded.unexpected:
            first_keys = ", ".join(loaded.unexpected[:3]) + (", ..." if len(loaded.unexpected) > 3 else "")
            told.say(f"{name}: {len(loaded.unexpected)} of its weights do not exist in the student: {first_keys}")
        if not loaded.pooler:
            told.say(f"{name}: has no pooler; it is drawn from seed {settings.seed}, as the classifier is")
        if loaded.fit_dense is not None:
            _require_width(name, loaded.fit_dense, loaded.model.config.hidden_size)
            with saving(partial):
                save_file(loaded.fit_dense, partial / PROJECTION_FILE)
        save_classifier(loaded.model, task.head, partial)
        save_tokenizer(tokenizer, partial)
        write_record(
            partial / STUDENT_FILE,
            {
                **identity,
                "name": name,
                "teacher": None,
                "parameters": loaded.model.num_parameters(),
                "unexpected_keys": list(loaded.unexpected),
                "drawn": ["classifier"] if loaded.pooler else ["pooler", "classifier"],
                "fit_dense": list(loaded.fit_dense["weight"].shape) if loaded.fit_dense else None,
                "made_by": provenance(),
            },
        )

    other = "a student of another checkpoint, task, tokenizer or seed"
    return build_artifact(folder, identity, builder, other, progress=progress)


def _tokenizer_of(name: str, teacher: str) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return the student's tokenizer, and whether it differs from the teacher's.

    The student uses the checkpoint's own tokenizer if that splits text differently from the teacher's. Otherwise it
    uses the teacher's, because two tokenizers that split text alike may still differ in whether they give token types.
    """
    teacher_tokenizer = load_tokenizer(teacher)
    own_tokenizer = checkpoint_tokenizer(name)
    vocabulary = checkpoint_config(name).vocab_size
    if own_tokenizer is None:
        teacher_vocabulary = load_config(teacher).vocab_size
        if vocabulary != teacher_vocabulary:
            raise MismatchError(
                f"{name}: has no tokenizer, and embeddings for {vocabulary} tokens; {teacher} has "
                f"{teacher_vocabulary}. Put the checkpoint's vocab.txt into its folder, or use a checkpoint of the "
                "teacher's tokenizer."
            )
        return teacher_tokenizer, False
    is_own = differ(own_tokenizer, teacher_tokenizer)
    tokenizer = own_tokenizer if is_own else teacher_tokenizer
    if vocabulary < len(tokenizer):
        raise MismatchError(
            f"{name}: has embeddings for {vocabulary} tokens, and its tokenizer has {len(tokenizer)}; "
            "weights and vocabulary do not belong to the same model."
        )
    if (
        not is_own
        and "token_type_ids" in tokenizer.model_input_names
        and getattr(checkpoint_config(name), "type_vocab_size", 2) < 2
    ):
        raise MismatchError(
            f"{name}: has embeddings for 1 token type, and the tokenizer of {teacher} gives 2; "
            "use a checkpoint of the teacher's type."
        )
    return tokenizer, is_own


def _draw_head(model: PreTrainedModel, seed: int, pooler: bool) -> None:
    """Draw, in place, the linear layers above the body, and the body's pooler if ``pooler``, as BERT draws its own."""
    body = set(model.base_model.modules())
    if pooler:
        body -= set(model.base_model.pooler.modules())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if module not in body and isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=model.config.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _require_width(name: str, fit_dense: dict[str, torch.Tensor], width: int) -> None:
    weight, bias = fit_dense["weight"], fit_dense["bias"]
    if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
        raise HskdError(
            f"{name}: fit_dense has weights of shape {tuple(weight.shape)} and {tuple(bias.shape)}; a student of "
            f"width {width} needs (d_T, {width}) and (d_T,)."
        )
