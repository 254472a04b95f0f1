from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModel, BertTokenizerFast

from hskd.errors import CorruptionError, HskdError
from hskd.heads import SequenceClassification
from hskd.tasks import load_task
from hskd.tasks.positions import max_tokens, require_positions
from hskd.tasks.task import Split, Task, TaskData
from hskd.tasks.tokenized import TokenizedSplit, tokenize, tokenizer_fingerprint

TEXTS = [f"{'the film is ' * (i % 4)}moving {i}" for i in range(40)]


def make_data(texts: list[list[str]], labels: list[int] | None = None, max_length: int = 12) -> TaskData:
    columns = tuple("ab"[: len(texts)])
    task = Task("t", columns, "label", SequenceClassification(("no", "yes"), ("accuracy",)), 1, max_length)
    labels = [i % 2 for i in range(len(texts[0]))] if labels is None else labels
    return TaskData(task, {"train": Split.of("train", texts, labels)})


@pytest.fixture
def split(tokenizer: BertTokenizerFast, tmp_path: Path) -> TokenizedSplit:
    return tokenize(make_data([TEXTS]), tokenizer, tmp_path)["train"]


@pytest.mark.parametrize("texts", [[TEXTS], [TEXTS, TEXTS[::-1]]])
@pytest.mark.parametrize("pad_to", [None, 12])
def test_collate_equals_the_tokenizers_padding(
    tokenizer: BertTokenizerFast, tmp_path: Path, texts: list[list[str]], pad_to: int | None
) -> None:
    split = tokenize(make_data(texts), tokenizer, tmp_path)["train"]
    split.pad_to = pad_to
    rows = [3, 0, 17, 4]
    batch = split.collate(rows)
    wanted = tokenizer(
        *[[column[row] for row in rows] for column in texts],
        truncation=True,
        max_length=12,
        padding="longest" if pad_to is None else "max_length",
        return_tensors="pt",
    )
    assert set(batch) == {"example_ids", "labels", *wanted}
    for name, tensor in wanted.items():
        assert batch[name].dtype == torch.int64
        assert torch.equal(batch[name], tensor), name
    assert batch["example_ids"].tolist() == split.ids[rows].tolist()
    assert batch["labels"].tolist() == [1, 0, 1, 0]


def test_shapes_and_truncation(split: TokenizedSplit) -> None:
    assert len(split) == 40
    assert split.lengths.max() == split.max_length == 12
    assert split.offsets[-1] == len(split.input_ids)
    assert split.input_ids.dtype == np.int32
    assert (split.input_ids[split.offsets[:-1]] == split.cls_id).all()
    assert (split.input_ids[split.offsets[1:] - 1] == split.sep_id).all()


def test_shorter_and_longer_than_the_task(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    data = make_data([TEXTS])
    assert tokenize(data, tokenizer, tmp_path, max_length=5)["train"].lengths.max() == 5
    assert tokenize(data, tokenizer, tmp_path, max_length=50)["train"].lengths.max() == 14


def test_too_long_for_pad_to(split: TokenizedSplit) -> None:
    split.pad_to = 5
    with pytest.raises(HskdError, match="12 tokens, more than the 5"):
        split.collate(np.arange(40))


def test_a_loader_takes_batches_as_they_are(split: TokenizedSplit) -> None:
    loader = torch.utils.data.DataLoader(split, batch_sampler=[[1, 2], [5]], collate_fn=lambda batch: batch)  # type: ignore[arg-type, var-annotated]
    assert [batch["example_ids"].tolist() for batch in loader] == [split.ids[[1, 2]].tolist(), [split.ids[5]]]


def test_take_and_first(split: TokenizedSplit) -> None:
    taken = split.take([7, 2, 7])
    for new, old in enumerate([7, 2, 7]):
        tokens = split.input_ids[split.offsets[old] : split.offsets[old + 1]]
        assert taken.input_ids[taken.offsets[new] : taken.offsets[new + 1]].tolist() == tokens.tolist()
    assert taken.ids.tolist() == split.ids[[7, 2, 7]].tolist()
    subsets = [split.first(n).ids.tolist() for n in range(1, 41)]
    for smaller, larger in pairwise(subsets):
        assert set(smaller) < set(larger)
    assert subsets[-1] == split.ids.tolist()
    assert subsets[9] == [i for i in split.ids.tolist() if i in set(subsets[9])]
    assert set(split.take(np.arange(40)[::-1]).first(10).ids.tolist()) == set(subsets[9])
    # Compared as unsigned, the smallest hashes have a first bit of 0, so they are the positive ids.
    assert all(i >= 0 for i in subsets[9])
    for n in (0, 41):
        with pytest.raises(HskdError, match="Ask for 1 to 40"):
            split.first(n)


def test_fingerprint_is_of_ids_and_tokens(split: TokenizedSplit, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    relabelled = tokenize(make_data([TEXTS], [0] * 40), tokenizer, tmp_path)["train"]
    assert relabelled.fingerprint == split.fingerprint
    assert split.take(np.arange(40)).fingerprint == split.fingerprint
    assert split.take(np.arange(39)).fingerprint != split.fingerprint
    assert split.take(np.arange(40)[::-1]).fingerprint != split.fingerprint


def test_the_cache_is_read_again_and_mapped(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    data = make_data([TEXTS])
    first = tokenize(data, tokenizer, tmp_path)["train"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    assert len(files) == 1
    tokenizer(TEXTS[0], padding="max_length", max_length=3, truncation=True)  # leaves a state in the tokenizer
    second = tokenize(data, tokenizer, tmp_path)["train"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")} == files
    assert second.fingerprint == first.fingerprint
    assert not second.input_ids.flags.owndata
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(next(iter(files))) in maps.read_text()


def test_texts_tokenizer_and_length_make_another_cache(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    tokenize(make_data([TEXTS]), tokenizer, tmp_path)
    tokenize(make_data([TEXTS[::-1]]), tokenizer, tmp_path)
    tokenize(make_data([TEXTS]), tokenizer, tmp_path, max_length=6)
    cased = BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=False)
    assert tokenizer_fingerprint(cased) != tokenizer_fingerprint(tokenizer)
    tokenize(make_data([TEXTS]), cased, tmp_path)
    assert len(list(tmp_path.rglob("*.arrow"))) == 4


def test_a_damaged_cache_is_refused(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    tokenize(make_data([TEXTS]), tokenizer, tmp_path)
    (file,) = tmp_path.rglob("*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptionError, match=rf"{file}: is not the file that was written there.*delete"):
        tokenize(make_data([TEXTS]), tokenizer, tmp_path)


def test_a_tokenizer_that_adds_no_cls_is_refused(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    """Without [CLS], the attention of the first word would be used instead."""
    bare = BertTokenizerFast(vocab=tokenizer.get_vocab())
    bare.backend_tokenizer.post_processor = processors.ByteLevel()  # adds nothing
    with pytest.raises(HskdError, match=r"makes \['a'\] of 'a'; expected \[CLS\] first and \[SEP\] behind each text"):
        tokenize(make_data([TEXTS]), bare, tmp_path)
    with pytest.raises(HskdError, match=r"expected \[CLS\] first"):
        tokenizer_fingerprint(bare)
    specials = [("[CLS]", bare.cls_token_id), ("[SEP]", bare.sep_token_id)]
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A $B [SEP]", specials
    )
    assert len(tokenize(make_data([TEXTS]), bare, tmp_path)["train"]) == 40
    with pytest.raises(HskdError, match=r"of 'a' and 'a'; expected \[CLS\] first and \[SEP\] behind each text"):
        tokenize(make_data([TEXTS, TEXTS]), bare, tmp_path)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A [SEP] [CLS]", "$A $B [SEP] [CLS]", specials
    )
    with pytest.raises(HskdError, match=r"expected \[CLS\] first"):  # as in XLNet
        tokenize(make_data([TEXTS]), bare, tmp_path)


def test_a_text_without_tokens_is_refused_with_its_place(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    for text in ("", " ", "\0\x07", "\u200b"):
        with pytest.raises(HskdError, match=r"split train, row 1: .*: no token is left of it; expected a text"):
            tokenize(make_data([["warm", text]]), tokenizer, tmp_path)
    (tmp_path / "train.csv").write_text("text,label\nwarm,0\n\x01,1\n")
    (tmp_path / "dev.csv").write_text("text,label\nwarm,0\n")
    with pytest.raises(HskdError, match=r"train\.csv, row 1: '\\x01': no token is left of it"):
        tokenize(load_task("custom", str(tmp_path), "text", "label"), tokenizer, tmp_path)
    pairs = tokenize(make_data([["warm", ""], ["", "dull"]]), tokenizer, tmp_path)["train"]
    assert pairs.lengths.tolist() == [4, 4], "one text of a pair may be empty, as in QQP"


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"split train, row 1: character 5 is a lone surrogate"):
        tokenize(make_data([["warm", "dull \udfff"]]), tokenizer, tmp_path)
    with pytest.raises(HskdError, match=r"split train, row 0: None; expected a text"):
        tokenize(make_data([[None, "dull"]]), tokenizer, tmp_path)  # type: ignore[list-item]


def test_texts_that_are_cut_are_counted(
    tokenizer: BertTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data([TEXTS])
    wanted = sum(len(ids) > 9 for ids in tokenizer(TEXTS)["input_ids"])
    assert 0 < wanted < 40
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert tokenize(data, tokenizer, tmp_path, max_length=9)["train"].cut == wanted
        assert caplog.messages == [
            f"task t: {wanted} of 40 texts are cut at 9 tokens (train {wanted} of 40); --max-length (max_length) says "
            "how many are kept"
        ]
    caplog.clear()
    assert tokenize(data, tokenizer, tmp_path, max_length=100)["train"].cut == 0 and not caplog.messages


def test_texts_are_cut_to_the_positions_of_the_model(
    tokenizer: BertTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data([TEXTS], max_length=100)
    split = tokenize(data, tokenizer, tmp_path, positions=14)["train"]
    assert (split.max_length, split.cut, caplog.messages) == (100, 0, []), "it fits"
    split = tokenize(data, tokenizer, tmp_path, positions=10)["train"]
    assert split.lengths.max() == split.max_length == 10
    assert caplog.messages[0] == "task t: the model has positions for 10 tokens, not for 100"
    wanted = sum(len(ids) > 10 for ids in tokenizer(TEXTS)["input_ids"])
    assert caplog.messages[1].startswith(f"task t: {wanted} of 40 texts are cut at 10 tokens")


def test_lengths_that_cannot_be(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    for length in (65_536, 10**12):
        with pytest.raises(HskdError, match=rf"--max-length {length}: a store counts .*; expected at most 65,535"):
            tokenize(make_data([TEXTS]), tokenizer, tmp_path, max_length=length)
    with pytest.raises(HskdError, match=r"--max-length 2: an example of task t takes at least 3 tokens"):
        tokenize(make_data([TEXTS]), tokenizer, tmp_path, max_length=2)
    assert tokenize(make_data([TEXTS, TEXTS]), tokenizer, tmp_path, max_length=5)["train"].lengths.max() == 5
    with pytest.raises(HskdError, match=r"--max-length 4: an example of task t takes at least 5 tokens"):
        tokenize(make_data([TEXTS, TEXTS]), tokenizer, tmp_path, max_length=4)
    with pytest.raises(HskdError, match=r"positions of the model: 2: an example of task t takes at least 3"):
        tokenize(make_data([TEXTS]), tokenizer, tmp_path, positions=2)


@pytest.mark.parametrize(
    ("model_type", "fields", "tokens"),
    [
        ("bert", {}, 512),
        ("roberta", {"max_position_embeddings": 514}, 512),
        ("xlm-roberta", {"max_position_embeddings": 514}, 512),
        ("mpnet", {"max_position_embeddings": 514}, 512),
        ("distilbert", {}, 512),
        ("electra", {"max_position_embeddings": 40}, 40),
        ("deberta-v2", {"position_biased_input": False}, None),
        ("funnel", {}, None),
    ],
)
def test_positions_of_models(model_type: str, fields: dict[str, Any], tokens: int | None) -> None:
    """A real model of each type takes exactly this many tokens."""
    config = AutoConfig.for_model(model_type, **fields)
    assert max_tokens(config) == tokens
    if tokens is not None:
        small = {
            "hidden_size": 8,
            "dim": 8,
            "num_hidden_layers": 1,
            "n_layers": 1,
            "num_attention_heads": 1,
            "n_heads": 1,
        }
        config = AutoConfig.for_model(
            model_type, **fields, **small, vocab_size=10, intermediate_size=8, hidden_dim=8, pad_token_id=1
        )
        model = AutoModel.from_config(config).eval()
        tokens = max_tokens(config)
        assert tokens is not None
        with torch.no_grad():
            model(torch.full((1, tokens), 5))
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.full((1, tokens + 1), 5))


def test_a_model_with_too_few_positions_is_refused(split: TokenizedSplit) -> None:
    require_positions(AutoConfig.for_model("bert", max_position_embeddings=12), {"train": split}, "student s")
    with pytest.raises(
        HskdError, match=r"student s: has positions for 11 tokens, and an example of train has 12; give"
    ):
        require_positions(AutoConfig.for_model("bert", max_position_embeddings=11), {"train": split}, "student s")


def test_a_tokenizer_without_sep(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    bare = BertTokenizerFast(vocab=tokenizer.get_vocab())
    bare.sep_token = None
    with pytest.raises(HskdError, match="has no sep token"):
        tokenize(make_data([TEXTS]), bare, tmp_path)
