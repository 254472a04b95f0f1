"""Extension of a store: old shards are taken over, and the teacher runs only on the new examples."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from store.conftest import EVERYTHING, SMALL_SHARD, Hskd, Setting
from support.calls import extraction
from transformers import BertTokenizerFast

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.store import extend, extract
from hskd.store.extract import Superset
from hskd.store.reader import Store
from hskd.store_format.layout import shard_name
from hskd.tasks import TokenizedSplit


@pytest.fixture(scope="module")
def grown(setting: Setting) -> TokenizedSplit:
    """The 64 training examples, then dev's 16 as if they were augmented."""
    return setting.train.followed_by(setting.splits["dev"])


def run(setting: Setting, split: TokenizedSplit, folder: Path, **options: Any) -> Store:
    torch.set_num_threads(1)
    options = {"shard_bytes": SMALL_SHARD, "superset": EVERYTHING, **options}
    superset = options.pop("superset")
    return extract.extract(setting.teacher, setting.task, split, superset, folder, **extraction(**options))


def same_records(mine: Store, theirs: Store, ids: np.ndarray, exactly: bool = True) -> None:
    """Check that two stores hold the same records of these examples."""
    a, b = mine.states(mine.rows(ids)), theirs.states(theirs.rows(ids))
    np.testing.assert_array_equal(a.tokens.input_ids, b.tokens.input_ids)
    pairs = [(mine.targets(mine.rows(ids)).numpy(), theirs.targets(theirs.rows(ids)).numpy())]
    pairs += [(a.hidden[layer].numpy(), b.hidden[layer].numpy()) for layer in a.hidden]
    pairs += [(a.attention[layer], b.attention[layer]) for layer in a.attention]
    for x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=0 if exactly else 1e-4, atol=0 if exactly else 1e-5)


def test_equal_to_an_extraction_in_one_go(
    setting: Setting, superset: Store, grown: TokenizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = run(setting, grown, tmp_path / "at-once")
    seen: list[int] = []
    forward = extract.teacher_forward

    def recorded(model: object, batch: dict[str, torch.Tensor], *args: object, **more: object) -> object:
        seen.extend(batch["example_ids"].tolist())
        return forward(model, batch, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(extract, "teacher_forward", recorded)
    done: list[int] = []
    before = {path.name: path.read_bytes() for path in superset.folder.iterdir()}
    store = run(setting, grown, tmp_path / "grown", extend=superset, advance=done.append)
    assert sorted(seen) == sorted(setting.splits["dev"].ids.tolist())
    assert sum(done) == 16
    assert len(store) == 80 and store.manifest.examples == 80
    store.verify()
    same_records(store, at_once, grown.ids)
    # Equal bits, because no shard spans old and new examples, so that the teacher sees the same batches in both cases.
    assert store.manifest.shards == at_once.manifest.shards
    assert store.manifest.fingerprint == at_once.manifest.fingerprint
    assert store.manifest.made_by["extends"] == superset.manifest.fingerprint
    assert {path.name: path.read_bytes() for path in superset.folder.iterdir()} == before
    shards = [entry.file for entry in superset.manifest.shards]
    assert all((store.folder / name).samefile(superset.folder / name) for name in shards)


def test_a_store_grows_twice_and_in_any_order(setting: Setting, tmp_path: Path) -> None:
    """The old examples lie among those of a larger random subset, but still come first in the store."""
    small, large = setting.train.first(10), setting.train.first(40)
    assert not np.array_equal(large.ids[:10], small.ids)
    first = run(setting, small, tmp_path / "first")
    done: list[int] = []
    second = run(setting, large, tmp_path / "second", extend=first, advance=done.append)
    assert sum(done) == 30
    np.testing.assert_array_equal(second.example_ids[:10], small.ids)
    assert set(second.example_ids) == set(large.ids)
    third = run(setting, setting.train, tmp_path / "third", extend=second, advance=done.append)
    assert sum(done) == 54
    at_once = run(setting, setting.train, tmp_path / "at-once")
    same_records(third, at_once, setting.train.ids, exactly=False)  # with other batch-mates, equal only to rounding
    again = run(setting, setting.train, tmp_path / "same", extend=at_once, advance=done.append)
    assert sum(done) == 54 and again.manifest.shards == at_once.manifest.shards


def test_copies_where_there_are_no_links(
    setting: Setting, superset: Store, grown: TokenizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another disk, where hard links are not possible."""

    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    store = run(setting, grown, tmp_path / "grown", extend=superset)
    store.verify()
    first = shard_name(0)
    assert not (store.folder / first).samefile(superset.folder / first)
    assert store.manifest.shards[0] == superset.manifest.shards[0]


def test_a_killed_extension_goes_on(
    setting: Setting, superset: Store, grown: TokenizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(setting, grown, tmp_path / "store", extend=superset, advance=stop)
    partial = tmp_path / "store.partial"
    assert sorted(path.name for path in partial.glob("shard-*")) == [shard.file for shard in superset.manifest.shards]
    monkeypatch.setattr(extend, "file_sha256", lambda path: pytest.fail("linked already"))
    store = run(setting, grown, tmp_path / "store", extend=superset)
    assert len(store) == 80 and not partial.exists()
    store.verify()


@pytest.mark.parametrize("linked", [True, False])
def test_a_shard_damaged_before_an_extension_goes_on(
    setting: Setting,
    superset: Store,
    grown: TokenizedSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    linked: bool,
) -> None:
    """A damaged copy is made again. A link is the old store's own shard, which is rejected."""
    old = Store.open(shutil.copytree(superset.folder, tmp_path / "old"))
    if not linked:

        def link(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(os, "link", link)

    class Stop(Exception):
        pass

    def stop(_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(setting, grown, tmp_path / "store", extend=old, advance=stop)
    shard = tmp_path / "store.partial" / shard_name(1)
    with shard.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-9, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    if linked:
        with pytest.raises(CorruptionError, match=f"old/{shard_name(1)}: its SHA-256 is not"):
            run(setting, grown, tmp_path / "store", extend=old)
        assert not (tmp_path / "store").exists()
    else:
        store = run(setting, grown, tmp_path / "store", extend=old)
        store.verify()
        assert store.manifest.shards[: len(old.manifest.shards)] == superset.manifest.shards


# ---- refusals


def test_another_teacher_superset_or_data(
    setting: Setting, superset: Store, grown: TokenizedSplit, tmp_path: Path, tokenizer: BertTokenizerFast
) -> None:
    target = tmp_path / "grown"
    other = replace(setting, teacher=replace(setting.teacher, model=make_bert(seed=9), fingerprint="another"))
    with pytest.raises(MismatchError, match=r"from another teacher: teacher is .* in the store and 'another' here"):
        run(other, grown, target, extend=superset)
    changed = replace(setting.teacher, tokenizer=tokenizer_without_lower_case(tokenizer))
    with pytest.raises(MismatchError, match="made from another tokenizer"):
        run(replace(setting, teacher=changed), grown, target, extend=superset)
    for wanted, said in (
        (Superset((0, 2), (1, 2)), r"its layers are \[0, 1, 2\], and \[0, 2\] is asked for"),
        (Superset((0, 1, 2), (2,)), r"its attention layers are \[1, 2\], and \[2\] is asked for"),
        (Superset((0, 1, 2), (1, 2), "fp16"), "its precision is fp32, and fp16 is asked for"),
    ):
        with pytest.raises(
            MismatchError, match=rf"cannot be extended: {said}; ask for what it has, or extract without"
        ):
            run(setting, grown, target, superset=wanted, extend=superset)
    with pytest.raises(MismatchError, match="its teacher was run in fp32, and bf16 is asked for"):
        run(setting, grown, target, extend=superset, dtype="bf16")
    with pytest.raises(MismatchError, match="another maximum length"):
        run(setting, replace(grown, max_length=40), target, extend=superset)
    with pytest.raises(MismatchError, match="54 of its 64 examples are not among the 10 to extract"):
        run(setting, setting.train.first(10), target, extend=superset)
    swapped = grown.take(np.arange(80))
    swapped.input_ids[1] += 1
    with pytest.raises(MismatchError, match="examples have other tokens here than in the store"):
        run(setting, swapped, target, extend=superset)
    assert not list(tmp_path.iterdir())


def tokenizer_without_lower_case(tokenizer: BertTokenizerFast) -> BertTokenizerFast:
    return BertTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=["[NEW]"])


def test_a_damaged_shard_is_not_taken_over(setting: Setting, grown: TokenizedSplit, tmp_path: Path) -> None:
    old = setting.extract(tmp_path / "old", shard_bytes=SMALL_SHARD)
    shard = old.folder / shard_name(1)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1  # a hidden state
    shard.write_bytes(content)
    with pytest.raises(CorruptionError, match=r"shard-00001\.safetensors: its SHA-256 is not the one in the manifest"):
        run(setting, grown, tmp_path / "grown", extend=Store.open(old.folder))
    assert not (tmp_path / "grown").exists()


def test_command_line(setting: Setting, tmp_path: Path, hskd: Hskd) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("a warm and dull story\ngreat and poor acting\na cold and funny minute\n")
    command = ("store", "extract", "--teacher", setting.teacher_folder, *setting.options, "--dtype", "fp32")
    real, both = tmp_path / "real", tmp_path / "both"
    few = ("--layers", "1,2", "--attention-layers", "2", "--train-examples", 20)
    assert hskd(*command, *few, "--out", real)[0] == 0
    more = (*command, "--augment", extra, "--extend", real, "--train-examples", 20, "--out", both)
    code, out, err = hskd(*more)
    assert (code, out) == (0, f"store: {both}\n"), err
    assert "extract: 3 steps" in err
    store = Store.open(both)
    assert len(store) == 23
    assert store.manifest.layers == (1, 2) and store.manifest.attention_layers == (2,)  # those of the old store
    spec = ("--spec", "1l_3t_0.1w", "--student-layers", 2)
    assert hskd("store", "derive", both, *spec, "--out", tmp_path / "derived")[0] == 0
    code, _, err = hskd(*command, *few, "--augment", extra, "--extend", tmp_path / "derived", "--out", tmp_path / "no")
    assert code == 2 and "is a derived store; extend its superset" in " ".join(err.split())
    with pytest.raises(HskdError, match="no store"):
        Store.open(tmp_path / "no")
