"""Grids of encoders other than BERT: a teacher, and pruned, pretrained and generally distilled students."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from grid.conftest import Write
from support.encoders import tiny
from support.grid_lab import OPTIONS, run
from support.real_tokenizers import byte_pairs, distil_wordpiece, mpnet_pieces
from transformers import AutoConfig, PreTrainedTokenizerBase, pipeline
from typer.testing import CliRunner

from hskd.cli.app import app

Tokenizer = Callable[[Path], PreTrainedTokenizerBase]


def save(folder: Path, model_type: str, tokenizer: Tokenizer, **sizes: int) -> Path:
    """Save an encoder without a head, and its tokenizer with the same start token and pad."""
    made = tokenizer(folder)
    ids = {"pad_token_id": made.pad_token_id, "cls_token_id": made.cls_token_id, "sep_token_id": made.sep_token_id}
    tiny(model_type, vocab_size=len(made), max_position_embeddings=130, **ids, **sizes).base_model.save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    ("model_type", "pieces"), [("roberta", byte_pairs), ("modernbert", distil_wordpiece), ("mpnet", mpnet_pieces)]
)
def test_a_grid_of_another_encoder(model_type: str, pieces: Tokenizer, write: Write, tmp_path: Path) -> None:
    body = save(tmp_path / "body", model_type, pieces)
    narrow = save(tmp_path / "narrow", model_type, pieces, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    text = tmp_path / "text.txt"
    text.write_text("the story is moving and the film is warm and bright\n" * 12, encoding="utf-8")
    general = f'{{layers: 2, width: 16, heads: 2, ffn: 16, text: "{text}", chunk_tokens: 12, epochs: 1}}'
    students = (
        "{layers: 2, heads: 3, ffn: 16, rank: 8, importance_examples: 32}",
        f'{{kind: tinybert, checkpoint: "{narrow}"}}',
        f"{{kind: tinybert, general: {general}}}",
    )
    file = write(
        f'teacher: {{model: "{body}", settings: {{epochs: 1, lr: 3.0e-3, batch_size: 16}}}}',
        f"students: [{', '.join(students)}]",
        "seeds: 1",
        "sweeps: [{n: [2], k: [3], w: [0.25]}]",
        name=model_type.replace("bert", ""),
    )
    ran = run(file, tmp_path)
    assert not ran.progress.failed
    assert len(ran.table) == 9
    made = sorted(config.parent for config in (ran.work / "students").glob("*/config.json"))
    types = {AutoConfig.from_pretrained(folder).model_type for folder in made}
    assert types == {model_type, f"rosita-{model_type}"}
    # The pruned student again, from the store alone.
    manifests = (ran.work / "stores").glob("*/manifest.json")
    [store] = [file.parent for file in manifests if '"attention_no_sep"' in file.read_text(encoding="utf-8")]
    [pruned] = [folder for folder in made if AutoConfig.from_pretrained(folder).model_type != model_type]
    options = ["--hsk-epochs", "1", "--prediction-epochs", "1", "--batch-size", "16", *OPTIONS]
    arguments = ["distill", "--student", pruned, "--store", store, "--no-data", "--out", tmp_path / "trial"]
    told = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *options)])
    assert told.exit_code == 0, told.output
    result = json.loads((tmp_path / "trial" / "result.json").read_text(encoding="utf-8"))
    assert np.isfinite(result["stages"]["hsk"]["last_loss"])


def write_splits(folder: Path, suffix: str, text: str) -> None:
    for split in ("train", "dev", "test"):
        (folder / f"{split}.{suffix}").write_text(text, encoding="utf-8")


def tagged(folder: Path, count: int) -> str:
    """Write sentences whose words have tags, and return the keys of a grid's task."""
    lines = [f"the\tO\n{word}\tB-work\nis\tO\n{'.' if i % 2 else 'moving'}\tO\n\n" for i, word in words(count)]
    write_splits(folder, "conll", "".join(lines))
    return "name: tagging"


def ranked(folder: Path, count: int) -> str:
    """Write queries with two passages each, and return the keys of a grid's task."""
    lines = [f"is {word} good?,{word} is warm,1\nis {word} good?,{i} is dull,0\n" for i, word in words(count)]
    write_splits(folder, "csv", "query,passage,label\n" + "".join(lines))
    return "name: reranking, text_columns: [query, passage], label_column: label"


def embedded(folder: Path, count: int) -> str:
    """Write texts, and return the keys of a grid's task."""
    text = "".join(f"the {word} is warm and bright {i}\n" for i, word in words(count))
    write_splits(folder, "txt", text)
    return "name: embedding"


def rated(folder: Path, count: int) -> str:
    """Write texts with a number, and return the keys of a grid's task."""
    lines = [f"the {word} is warm,{i % 7 + 0.5}\n" for i, word in words(count)]
    write_splits(folder, "csv", "text,label\n" + "".join(lines))
    return "name: custom, text_columns: [text], label_column: label"


def several(folder: Path, count: int) -> str:
    """Write texts with lists of labels, and return the keys of a grid's task."""
    rows = [{"text": f"the {word} is warm", "label": ["warm", "dull"][: i % 3]} for i, word in words(count)]
    write_splits(folder, "jsonl", "\n".join(map(json.dumps, rows)))
    return "name: custom, text_columns: [text], label_column: label"


def words(count: int) -> list[tuple[int, str]]:
    return [(i, ("film", "story", "acting")[i % 3] + str(i)) for i in range(count)]


@pytest.mark.parametrize("head", [tagged, ranked, embedded, rated, several])
@pytest.mark.parametrize(("model_type", "pieces"), [("roberta", byte_pairs), ("mpnet", mpnet_pieces)])
def test_every_head_of_another_encoder(
    head: Callable[[Path, int], str], model_type: str, pieces: Tokenizer, write: Write, tmp_path: Path
) -> None:
    """The students of each head are what the libraries of its users load."""
    library = pytest.importorskip("sentence_transformers")
    body = save(tmp_path / "body", model_type, pieces)
    narrow = save(tmp_path / "narrow", model_type, pieces, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    (tmp_path / "data").mkdir()
    task = head(tmp_path / "data", 24)
    settings = "" if head is embedded else ", settings: {epochs: 1, lr: 3.0e-3, batch_size: 16}"
    pruned = "" if head is embedded else "{layers: 2, heads: 3, ffn: 16, importance_examples: 16}, "
    file = write(
        f'task: {{{task}, data: "{tmp_path / "data"}"}}',
        f'teacher: {{model: "{body}"{settings}}}',
        f'students: [{pruned}{{kind: tinybert, checkpoint: "{narrow}"}}]',
        "seeds: 1",
        "sweeps: [{n: [2], k: [3], w: [0.25]}]",
        name=f"{model_type}-{head.__name__}",
    )
    ran = run(file, tmp_path)
    assert not ran.progress.failed
    assert len(ran.table) == 3 * (1 if head is embedded else 2)
    width = AutoConfig.from_pretrained(body).hidden_size
    [student, *_] = sorted((ran.work / "trials").glob("*/student"))
    if head is tagged:
        tag = pipeline("token-classification", model=str(student), device="cpu", ignore_labels=[])
        assert {found["entity"] for found in tag("the film is warm")} <= {"O", "B-work", "I-work"}
    elif head is ranked:
        assert library.CrossEncoder(str(student), device="cpu").predict([("is film good?", "film is warm")]).shape == (
            1,
        )
    elif head is embedded:
        assert library.SentenceTransformer(str(student), device="cpu").encode(["the film"]).shape == (1, width)
    else:
        classify = pipeline("text-classification", model=str(student), device="cpu", top_k=None)
        [found] = classify(["the film is warm"])
        assert {each["label"] for each in found} == ({"score"} if head is rated else {"warm", "dull"})
