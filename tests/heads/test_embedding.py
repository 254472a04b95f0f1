"""Sentence embeddings: the model, the losses, the scores, and every command that trains them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, make_bert
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F
from transformers import BertTokenizerFast, DistilBertConfig, DistilBertModel

from hskd.analysis.stats.examples import Answers
from hskd.analysis.table import only_study
from hskd.artifacts import seal
from hskd.cli.app import main
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.heads import SentenceEmbedding, head_of
from hskd.heads.embedding.layout import embedding_size, read_layout
from hskd.heads.embedding.model import EmbeddingLoader, EmbeddingModel
from hskd.io import write_json
from hskd.results import ResultsFolder
from hskd.students import load_student
from hskd.tasks import load_task, tokenize
from hskd.teachers.forward import ForwardOptions, teacher_forward
from hskd.teachers.loading import Teacher, model_content, model_fingerprint
from hskd.trials.data import for_teacher

CPU = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]
RATES = ["--hsk-epochs", "2", "--prediction-epochs", "4", "--hsk-lr", "1e-3", "--prediction-lr", "5e-3"]
HEAD = SentenceEmbedding(size=32)
Cli = Callable[..., None]


def vectors(model: EmbeddingModel, tokenizer: BertTokenizerFast, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).embedding.numpy()


def model_of(pooling: str = "mean", size: int = 32, seed: int = 0) -> EmbeddingModel:
    body = make_bert(seed).bert
    body.pooler = None
    return EmbeddingModel(body, pooling, size)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("size", [32, 48])
def test_sentence_transformers_gives_the_same_vectors(
    tokenizer: BertTokenizerFast, tmp_path: Path, pooling: str, size: int
) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = model_of(pooling, size)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mine = vectors(model, tokenizer, GOOD)
    assert mine.shape == (4, size)
    np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, rtol=1e-5)
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(theirs.encode(GOOD), mine, atol=1e-6)
    # hskd also reads models that sentence_transformers saves.
    theirs.save(str(tmp_path / "again"))
    again = EmbeddingLoader().from_pretrained(tmp_path / "again")
    np.testing.assert_allclose(vectors(again, tokenizer, GOOD), mine, atol=1e-6)
    assert embedding_size(str(tmp_path / "again")) == again.embedding_size == size
    assert model_fingerprint(again) == model_fingerprint(model)
    assert isinstance(load_student(tmp_path), EmbeddingModel)


def test_the_offline_teacher() -> None:
    library = pytest.importorskip("sentence_transformers")
    from hskd.teachers.loading import load_tokenizer, resolve_model

    folder = resolve_model("offline:minilm")
    model = SentenceEmbedding().for_teacher(folder).auto_class.from_pretrained(folder, dtype=torch.float32)
    mine = vectors(model, load_tokenizer(folder), GOOD)  # type: ignore[arg-type]
    np.testing.assert_allclose(library.SentenceTransformer(folder, device="cpu").encode(GOOD), mine, atol=1e-6)


def test_pads_and_poolings_have_a_say(tokenizer: BertTokenizerFast) -> None:
    model = model_of()
    together, alone = vectors(model, tokenizer, [GOOD[2], GOOD[3]])[0], vectors(model, tokenizer, [GOOD[2]])[0]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert len({model_fingerprint(model_of(pooling)) for pooling in ("mean", "cls", "max")}) == 3


def test_other_encoders(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    body = DistilBertModel(DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=32))
    body.save_pretrained(tmp_path)
    model = EmbeddingLoader(24).from_pretrained(tmp_path)
    assert read_layout(str(tmp_path)).pooling == "mean" and embedding_size(str(tmp_path)) == 16
    assert isinstance(model.dense, nn.Linear) and model.embedding_size == 24


def test_what_a_folder_may_not_say(tmp_path: Path) -> None:
    model_of(size=48).save_pretrained(tmp_path)
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    write_json(tmp_path / "1_Pooling" / "config.json", pooling | {"pooling_mode_max_tokens": True})
    with pytest.raises(HskdError, match=r"pools by \['mean', 'max'\], which is not supported"):
        read_layout(str(tmp_path))
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken"})
    with pytest.raises(HskdError, match=r"pools by \['lasttoken'\]"):
        read_layout(str(tmp_path))
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    assert read_layout(str(tmp_path)).pooling == "cls"
    dense = json.loads((tmp_path / "2_Dense" / "config.json").read_text())
    write_json(
        tmp_path / "2_Dense" / "config.json", dense | {"activation_function": "torch.nn.modules.activation.Tanh"}
    )
    with pytest.raises(HskdError, match=r"2_Dense: the activation .*Tanh is not supported"):
        read_layout(str(tmp_path))
    write_json(tmp_path / "modules.json", [{"path": "", "type": "sentence_transformers.models.CLIPModel"}])
    with pytest.raises(HskdError, match=r"the module .*CLIPModel is not supported"):
        read_layout(str(tmp_path))
    with pytest.raises(MismatchError, match="here: gives vectors of 48 numbers, and 32 are expected"):
        HEAD.align(model_of(size=48), "here")


def test_modules_are_part_of_the_model(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model_of(size=48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seal(folder)
    plain, whole = model_content(str(folder)), model_content(str(folder), modules=True)
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"):
        path, content = folder / name, (folder / name).read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CorruptionError, match=f"{name}: is not the file that was written there"):
            load_student(folder)
        path.write_bytes(content)
    pooling = folder / "1_Pooling" / "config.json"
    write_json(pooling, {"pooling_mode": "cls"})
    assert model_content(str(folder), modules=True) != whole and model_content(str(folder)) == plain
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "checksums.json").unlink()
    with pytest.raises(HskdError, match=r"2_Dense/model\.safetensors: is a git-lfs pointer"):
        load_student(folder)


def test_no_token_is_ranked_by_gradient(made: tuple[Path, list[Any]]) -> None:
    root, _ = made
    data = load_task("embedding", str(root / "data"))
    task = for_teacher(data.task, str(root / "teacher"))
    teacher = Teacher.load(str(root / "teacher"), task)
    split = tokenize(data, teacher.tokenizer, root / "tokens")["dev"]
    with pytest.raises(HskdError, match="a sentence embedding predicts nothing"):
        teacher_forward(
            teacher.model,
            split.collate([0]),
            split.sep_id,
            (1,),
            (),
            head=task.head,
            options=ForwardOptions(gradients=(1,)),
        )


def unit(seed: int, rows: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_losses() -> None:
    rows, target = unit(0), unit(1)
    cosine = F.cosine_similarity(rows, target).mean()
    torch.testing.assert_close(HEAD.distil_loss(rows, target), 1 - cosine)
    mse = HEAD.with_loss("mse")
    torch.testing.assert_close(mse.distil_loss(rows, target), 2 - 2 * cosine)  # for unit vectors
    similarity = HEAD.with_loss("similarity")
    expected = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        p, q = ((x[others] @ x[i] / (0.05 * 2.0)).softmax(0) for x in (target, rows))
        expected += float((p * (p / q).log()).sum()) / 6
    assert float(similarity.distil_loss(rows, target, 2.0)) == pytest.approx(expected, rel=1e-4)
    for head in (HEAD, mse, similarity):
        assert float(head.distil_loss(target, target)) == pytest.approx(0, abs=1e-5)
    with pytest.raises(HskdError, match="--loss triplet: unknown loss of embeddings; known: cosine, mse, similarity"):
        HEAD.with_loss("triplet")
    with pytest.raises(HskdError, match="--loss mse: a task of kind classification has one loss"):
        head_of("classification", ("a", "b")).with_loss("mse")


def test_scores_of_pairs_and_of_texts() -> None:
    rows, ratings = unit(0, 20).numpy(), np.repeat(np.arange(10, dtype=np.float32), 2)
    cosines = (rows[0::2] * rows[1::2]).sum(1)
    expected = spearmanr(cosines, np.arange(10))[0]
    assert HEAD.metrics(rows, ratings) == {"spearman": pytest.approx(expected), "score": pytest.approx(expected)}
    answers = HEAD.answers(rows, ratings)
    assert answers.shape == (20, 1) and HEAD.metrics(answers, ratings)["score"] == pytest.approx(expected)
    assert HEAD.examples(ratings).tolist() == [i // 2 for i in range(20)]
    teacher = unit(1, 20).numpy()
    agreement = float((rows * teacher).sum(1).mean())
    assert HEAD.metrics(rows, teacher)["agreement"] == pytest.approx(agreement)
    assert HEAD.metrics(HEAD.answers(rows, teacher), teacher)["score"] == pytest.approx(agreement)
    assert HEAD.metrics(teacher, teacher)["score"] == pytest.approx(1)
    assert HEAD.unit == "correlation x 100" and replace(HEAD, metric_names=("agreement",)).unit == "cosine x 100"


def test_files(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one text\n\n two texts \none text\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\tb\t3.5\n2\tc\td\t1\n", encoding="utf-8"
    )
    (tmp_path / "test.csv").write_text("sentence1,sentence2,score\na,b,1\n", encoding="utf-8")
    data = load_task("embedding", str(tmp_path))
    assert data.splits["train"].texts == (["one text", "two texts"],) and data.splits["train"].labels is None
    assert data.splits["dev"].texts == (["a", "b", "c", "d"],) and data.splits["dev"].labels == [3.5, 3.5, 1.0, 1.0]
    assert data.splits["test"].labels == [1.0, 1.0] and data.task.head.metric_names == ("spearman",)
    (tmp_path / "test.csv").write_text("sentence1,sentence2,score\na,b,often\n", encoding="utf-8")
    with pytest.raises(HskdError, match=r"test\.csv, row 0, column 'score': 'often'; expected a number"):
        load_task("embedding", str(tmp_path))
    (tmp_path / "test.csv").write_text("sentence1,sentence2\na,b\n", encoding="utf-8")
    with pytest.raises(HskdError, match=r"test\.csv: pairs, but no column of ratings"):
        load_task("embedding", str(tmp_path))
    (tmp_path / "test.csv").write_text("text\na\n", encoding="utf-8")
    with pytest.raises(HskdError, match="must both hold pairs with ratings, or both texts"):
        load_task("embedding", str(tmp_path))
    (tmp_path / "test.csv").write_text("sentences\na\n", encoding="utf-8")
    with pytest.raises(HskdError, match=r"test\.csv: no column of texts"):
        load_task("embedding", str(tmp_path))
    with pytest.raises(HskdError, match="Task embedding needs --data"):
        load_task("embedding")
    one = tmp_path / "one.txt"
    one.write_text("\n".join(f"text {i}" for i in range(200)), encoding="utf-8")
    data = load_task("embedding", str(one))
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sum(sizes.values()) == 200 and sizes["train"] > 160 and data.task.head.metric_names == ("agreement",)


# Commands


@pytest.fixture(scope="module")
def cli() -> Cli:
    """Run ``hskd`` with these arguments."""
    torch.set_num_threads(1)

    def run(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code, arguments

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast, cli: Cli) -> tuple[Path, list[Any]]:
    """A folder with data, a teacher, a narrower student and a superset, and the options of the task."""
    root = tmp_path_factory.mktemp("embedding")
    (root / "data").mkdir()
    texts = [f"{one} and {other}" for one in GOOD + BAD for other in GOOD + BAD if one != other]
    (root / "data" / "train.txt").write_text("\n".join(texts), encoding="utf-8")
    pairs = [f"{one}\t{other}\t{(one in GOOD) == (other in GOOD):d}" for one in GOOD for other in GOOD + BAD]
    for split in ("dev", "test"):
        (root / "data" / f"{split}.tsv").write_text(
            "\n".join(["sentence1\tsentence2\tscore", *pairs]), encoding="utf-8"
        )
    model_of(seed=1).save_pretrained(root / "teacher")
    make_bert(2, hidden_size=16, num_attention_heads=2, intermediate_size=24).bert.save_pretrained(root / "checkpoint")
    for folder in ("teacher", "checkpoint"):
        tokenizer.save_pretrained(root / folder)
    task = ["--task", "embedding", "--data", root / "data", "--work", root / "work", *CPU]
    student = ["--kind", "tinybert", "--checkpoint", root / "checkpoint", "--out", root / "student"]
    cli("student", "--teacher", root / "teacher", *student, *task)
    cli("store", "extract", "--teacher", root / "teacher", "--precision", "fp32", "--out", root / "store", *task)
    return root, task


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_offline_is_online(
    made: tuple[Path, list[Any]], cli: Cli, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    root, task = made
    shared = ["distill", "--student", root / "student", "--spec", "1l_3t_0.5w,precision=fp32", *RATES, *task]
    cli(*shared, "--store", root / "store", "--out", tmp_path / "offline")
    cli(*shared, "--teacher", root / "teacher", "--out", tmp_path / "online")
    offline, online = result(tmp_path / "offline"), result(tmp_path / "online")
    for stage in ("hsk", "prediction"):
        found, expected = offline["stages"][stage]["last_loss"], online["stages"][stage]["last_loss"]
        assert found == pytest.approx(expected, rel=1e-3)
    last = offline["stages"]["prediction"]
    assert last["last_loss"] < 0.7 * last["first_loss"]
    assert offline["metrics"]["test"]["score"] == offline["metrics"]["test"]["spearman"]

    # The student is a sentence transformer that includes the projection to the teacher's size.
    library = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "offline" / "student"
    student = load_student(folder, HEAD)
    encoder = library.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(encoder.encode(GOOD), vectors(student, tokenizer, GOOD), atol=1e-6)  # type: ignore[arg-type]
    assert encoder.get_embedding_dimension() == 32 and student.config.hidden_size == 16


@pytest.mark.parametrize("split", ["dev", "test"])
def test_texts_without_ratings_are_not_scored_from_a_store(
    made: tuple[Path, list[Any]], cli: Cli, tmp_path: Path, split: str
) -> None:
    root, task = made
    own = tmp_path / "data"
    own.mkdir()
    (own / "train.txt").write_text((root / "data" / "train.txt").read_text(encoding="utf-8"), encoding="utf-8")
    (own / f"{split}.txt").write_text("\n".join(f"{one} again" for one in GOOD), encoding="utf-8")
    task = [own if word == root / "data" else word for word in task]
    shared = ["distill", "--student", root / "student", "--arm", "none", *RATES, *task, "--store", root / "store"]
    cli(*shared, "--out", tmp_path / "trial")
    written = result(tmp_path / "trial")
    assert written["metrics"] == {} and written["stages"]["prediction"]["last_loss"] < 1
    assert (tmp_path / "trial" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("loss", ["mse", "similarity"])
def test_other_losses(made: tuple[Path, list[Any]], cli: Cli, tmp_path: Path, loss: str) -> None:
    root, task = made
    shared = ["distill", "--student", root / "student", "--arm", "none", *RATES, *task, "--store", root / "store"]
    cli(*shared, "--loss", loss, "--out", tmp_path / "trial")
    stage = result(tmp_path / "trial")["stages"]["prediction"]
    assert stage["last_loss"] < 0.8 * stage["first_loss"]
    assert result(tmp_path / "trial")["settings"]["loss"] == loss


GRID = """\
name: embeddings
task: {{name: embedding, data: "{data}"}}
teacher: {{model: "{root}/teacher"}}
students: [{{kind: tinybert, checkpoint: "{root}/checkpoint"}}]
training: {{hsk_epochs: 1, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16}}
seeds: 1
include: [1l_2t_0.25w]
"""


@pytest.mark.parametrize("kind", ["pairs", "texts"])
def test_a_grid(
    made: tuple[Path, list[Any]], cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root, _ = made
    data = root / "data" if kind == "pairs" else root / "data" / "train.txt"
    file, out = tmp_path / "grid.yaml", tmp_path / "out"
    file.write_text(GRID.format(data=data, root=root), encoding="utf-8")
    cli("grid", "run", file, "--out", out, "--work", tmp_path / "work", "--dtype", "fp32", "--threads", "1")
    study = only_study(out)
    answers, labels = Answers.read(out, study), ResultsFolder(out).labels("test")
    assert answers is not None and labels is not None
    assert answers.variance({"full": 1.0, "none": -1.0}, [0]) >= 0
    assert next(iter(answers.logits.values())).shape == (len(labels), 1)
    assert study.teacher_score == pytest.approx(1) if kind == "texts" else study.teacher_score < 1
    # A second run finds everything finished, including the teacher's labels.
    kept = {path: path.stat().st_mtime_ns for path in out.glob("trials/*.json")}
    capsys.readouterr()
    cli("grid", "run", file, "--out", out, "--work", tmp_path / "work", "--dtype", "fp32", "--threads", "1")
    said = capsys.readouterr()
    assert "done anew" not in said.out + said.err
    assert kept == {path: path.stat().st_mtime_ns for path in out.glob("trials/*.json")}
    again = ResultsFolder(out).labels("test")
    assert again is not None and np.array_equal(again, labels)
    assert study.unit == ("correlation x 100" if kind == "pairs" else "cosine x 100")


def test_no_teacher_is_fine_tuned(
    made: tuple[Path, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, task = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            ["hskd", "teacher", "--model", str(root / "teacher"), "--out", str(tmp_path / "t"), *map(str, task)],
        )
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 2 and "needs no fine-tuning" in " ".join(capsys.readouterr().err.split())
