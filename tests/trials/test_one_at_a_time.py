"""Two processes that make one artifact: the second waits, says so, and finds it done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_bert
from support.calls import CPU_RUN, Calls
from support.distill_lab import Lab, weights
from transformers import BertTokenizerFast

import hskd
from hskd import artifacts
from hskd.progress import Progress
from hskd.spec import HSKSpec
from hskd.students.general.distillation import general_distill
from hskd.students.general.settings import GeneralSettings
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.teachers.finetune import finetune
from hskd.teachers.settings import TeacherSettings
from hskd.trials.config import GivenStudent, TaskPlan, TrialConfig
from hskd.trials.settings import DistillSettings

Make = Callable[[Path, Progress], object]


def at_once(make: Make, folder: Path, scratch: Path) -> list[dict[str, list[str]]]:
    """What two processes are told that make one folder: the second begins when the first has."""
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            told: dict[str, list[str]] = {"titles": [], "said": [], "error": []}
            mark = scratch / "begun"
            while number == 1 and not mark.exists():
                pass

            def begin(title: str, told: dict[str, list[str]] = told, mark: Path = mark) -> None:
                told["titles"].append(title)
                mark.touch()
                # Until the other one has come to the lock.
                for _ in range(30):
                    os.sched_yield()
                    torch.randn(100, 100).svd()

            artifacts._PATIENCE = 0.05
            try:
                make(folder, Calls(begin=begin, say=told["said"].append))
            except BaseException as error:
                told["error"].append(f"{type(error).__name__}: {error}")
            (scratch / f"told-{number}.json").write_text(json.dumps(told), encoding="utf-8")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads((scratch / f"told-{number}.json").read_text(encoding="utf-8")) for number in range(2)]


def makers(lab: Lab, data: Path, body: Path, root: Path) -> dict[str, Make]:
    def distill(folder: Path, progress: Progress) -> object:
        config = TrialConfig(
            task=TaskPlan(name="custom", data=str(data), text_columns=("sentence",), label_column="mood"),
            teacher=None,
            student=GivenStudent(folder=str(lab.root / "narrow")),
            settings=DistillSettings(hsk_epochs=2, prediction_epochs=2, batch_size=16),
            spec=HSKSpec.parse("2l_3t_0.5w"),
            dtype="fp32",
            device="cpu",
            threads=1,
            build_threads=1,
            store=str(lab.root / "superset"),
        )
        return hskd.run_trial(config, root / "work", folder, progress)

    settings = TeacherSettings(epochs=2, batch_size=16)
    text = root / "text.txt"
    text.write_text("a warm and funny film of the bright story\n" * 60, encoding="utf-8")
    sizes = {"layers": 1, "width": 16, "heads": 2, "ffn": 16, "chunk_tokens": 12, "epochs": 2}
    general = GeneralSettings(text=text, **sizes)  # type: ignore[arg-type]
    pruned = RositaSettings(layers=2, heads=2, ffn=24)
    return {
        "distill": distill,
        "teacher": lambda folder, told: finetune(str(body), lab.task, lab.splits, settings, folder, CPU_RUN, told),
        "student": lambda folder, told: create_rosita(lab.teacher, lab.train, pruned, folder, progress=told),
        "general": lambda folder, told: general_distill(str(body), general, folder, CPU_RUN, told),
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["distill", "teacher", "student", "general"])
def test_the_second_waits_and_finds_it_done(
    lab: Lab, data_folder: Path, tokenizer: BertTokenizerFast, tmp_path: Path, kind: str
) -> None:
    torch.set_num_threads(1)
    make_bert().save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    make = makers(lab, data_folder, tmp_path / "body", tmp_path)[kind]
    told = at_once(make, tmp_path / "together", tmp_path)
    assert [one["error"] for one in told] == [[], []]
    trained = [[title for title in one["titles"] if title != "derive"] for one in told]
    assert trained[0] and not trained[1], "only one of them trained"
    assert any("another process is making it; waiting until that one is done" in said for said in told[1]["said"])
    make(tmp_path / "alone", Calls())
    if kind == "distill":
        assert weights(tmp_path / "together") == weights(tmp_path / "alone")
    else:
        found, expected = (tmp_path / name / "model.safetensors" for name in ("together", "alone"))
        assert found.read_bytes() == expected.read_bytes()
