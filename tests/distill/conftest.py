"""The laboratory of the distillation tests."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from conftest import make_bert
from distill.lab import Lab
from transformers import BertTokenizerFast

from hskd.store.extract import Superset, extract
from hskd.students.create import StudentSettings, create_rosita
from hskd.training import predict_logits


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast, data_folder: Path) -> Lab:
    """A teacher of 4 layers with dropout, a ROSITA student and a narrower BERT of 2, and a superset of everything."""
    gc.collect()
    gc.freeze()  # Trainer collects garbage at every end: among all that is imported, that takes longer than it trains
    root = tmp_path_factory.mktemp("lab")
    teacher = make_bert(num_hidden_layers=4)
    teacher.save_pretrained(root / "teacher")
    tokenizer.save_pretrained(root / "teacher")
    with torch.no_grad():  # a teacher that says now this, now that
        shift = torch.from_numpy(predict_logits(teacher, Lab.open(root, data_folder).train, "fp32")).mean(dim=0)
        teacher.classifier.bias.sub_(shift)
        teacher.classifier.weight.mul_(4)
        teacher.classifier.bias.mul_(4)
    teacher.save_pretrained(root / "teacher")
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.5}
    make_bert(seed=1, **narrow).save_pretrained(root / "narrow")
    tokenizer.save_pretrained(root / "narrow")
    opened = Lab.open(root, data_folder)
    create_rosita(opened.teacher, opened.train, StudentSettings(layers=2, heads=2, ffn=24, rank=8), root / "rosita")
    everything = Superset(layers=(0, 1, 2, 3, 4), attention_layers=(1, 2, 3, 4))
    extract(opened.teacher, opened.task, opened.train, everything, root / "superset")
    return opened
