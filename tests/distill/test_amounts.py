"""A share of the examples, and random layers per batch: online, from a store, and in a trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.calls import Calls
from support.distill_lab import Lab, arguments, losses, weights

from hskd.distill.source import OnlineSource, StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import fingerprint
from hskd.runtime import RunOptions
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.tasks import BatchDataset, BucketedBatchSampler, TokenizedSplit
from hskd.trials.prepare import Distillation, Prepared, Student, from_store, from_teacher
from hskd.trials.settings import DistillSettings
from hskd.trials.stages import TrialInputs
from hskd.trials.trial import About, run_prepared

CHOICES = ("random", "disagree", "entropy")
CODECS = ("", ",width=pca", ",width=uniform")


@pytest.fixture(scope="module")
def superset(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A superset from which any spec of this file can be derived."""
    every = (1, 2, 3, 4)
    held = Superset((0, *every), every, received_layers=every, gold_losses=True)
    return extract(lab.teacher, lab.task, lab.train, held, tmp_path_factory.mktemp("amounts") / "superset")


def prepared(lab: Lab, superset: Store | None, text: str, folder: Path, **settings: Any) -> tuple[Student, Prepared]:
    """Prepare a distillation from the store, or from the teacher where ``superset`` is None."""
    student = Student.load(lab.root / "rosita", lab.task)
    chosen = DistillSettings(**{"hsk_epochs": 3, "prediction_epochs": 1, "batch_size": 16, **settings})
    distillation = Distillation(chosen, HSKSpec.parse(text), student, lab.task, lab.train)
    if superset is None:
        return student, from_teacher(lab.teacher, distillation, "fp32")
    return student, from_store(superset, distillation, folder)


def hsk_trace(lab: Lab, source: Any, split: TokenizedSplit, folder: Path, **changes: Any) -> list[float]:
    module = HSKModule(lab.student("rosita"), lab.teacher.model.config.hidden_size)
    return losses(HSKTrainer(module, arguments(folder, **changes), split, source))


@pytest.mark.parametrize("examples", CHOICES)
@pytest.mark.parametrize("codec", CODECS)
def test_the_teacher_and_a_store_keep_the_same(
    lab: Lab, superset: Store, tmp_path: Path, examples: str, codec: str
) -> None:
    text = f"2l_3t_0.25w_0.25e,examples={examples},precision=fp32{codec}"
    (_, offline), (_, online) = (prepared(lab, store, text, tmp_path / "derived") for store in (superset, None))
    assert offline.hsk_rows is not None and online.hsk_rows is not None
    assert offline.hsk_rows.tolist() == online.hsk_rows.tolist() and len(online.hsk_rows) == 16
    for name in ("kept_values", "fraction", "bytes_per_example", "spec"):
        assert offline.record[name] == online.record[name], name
    few = lab.train.take(online.hsk_rows)
    traces = [hsk_trace(lab, one.source, few, tmp_path, epoch_examples=64) for one in (offline, online)]
    assert len(traces[0]) == 5 * 4  # as many steps as of all 64 examples
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)


def test_examples_are_ranked_by_what_the_teacher_says(lab: Lab, superset: Store) -> None:
    """The scores equal plain sums over the logits of the superset."""
    logits = superset.targets(superset.rows(lab.train.ids)).double()
    assert lab.train.labels is not None
    logs = logits.log_softmax(1)
    scores = {
        "disagree": -logs[torch.arange(64), torch.from_numpy(lab.train.labels)],
        "entropy": -(logs.exp() * logs).sum(1),
    }
    for name, score in scores.items():
        spec = HSKSpec.parse(f"1l_all_all_0.2e,examples={name}")
        rows = spec.examples.select(superset.example_scores(spec.examples))
        assert set(rows.tolist()) == set(score.argsort(descending=True)[:12].tolist())
        source = OnlineSource(lab.teacher, lab.train.sep_id, spec, 2)
        assert source.rows_with_hsk(lab.train, batch_size=7).tolist() == rows.tolist()


def test_a_store_holds_hidden_states_of_the_kept_examples_alone(lab: Lab, superset: Store, tmp_path: Path) -> None:
    whole = derive(superset, HSKSpec.parse("2l_3t_0.25w"), 2, tmp_path / "whole")
    few = derive(superset, HSKSpec.parse("2l_3t_0.25w_0.25e"), 2, tmp_path / "few", shard_bytes=2**11)
    assert len(few.manifest.shards) > 1
    rows = few.rows_with_hsk
    assert len(few) == 64 and len(rows) == 16 and not few.counts[np.setdiff1d(np.arange(64), rows)].any()
    assert torch.equal(few.targets(np.arange(64)), whole.targets(np.arange(64)))
    one, other = few.kept(rows), whole.kept(rows)
    for name in ("counts", "positions", "values", "neurons"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    record = prepared(lab, superset, "2l_3t_0.25w_0.25e", tmp_path / "derived")[1].record
    arrays = [tensor for shard in few._shards for tensor in shard.values()]
    assert record["bytes_per_example"] * 64 == sum(tensor.nbytes for tensor in arrays)
    assert record["kept_values"] == 2 * few.counts.sum() * 8
    missing = int(np.setdiff1d(np.arange(64), rows)[0])
    with pytest.raises(HskdError, match=rf"of 16 of 64 examples, and not of id {few.example_ids[missing]}"):
        few.kept(np.array([rows[0], missing]))
    few.verify()


def test_a_share_too_large_is_refused(superset: Store, tmp_path: Path) -> None:
    """The manifest claims a smaller share than its shards hold."""
    store = derive(superset, HSKSpec.parse("1l_all_0.25w_0.5e"), 2, tmp_path / "store")
    path = store.folder / "manifest.json"
    content = json.loads(path.read_text())
    content["spec"]["examples"]["e"] = 0.25
    content.pop("checksum")
    path.write_text(json.dumps(content | {"checksum": fingerprint(content)}))
    with pytest.raises(CorruptionError, match=r"holds hidden states of 32 examples, and its spec .* keeps those of 16"):
        Store.open(store.folder)


def test_other_labels_are_refused(lab: Lab, superset: Store, tmp_path: Path) -> None:
    text = "1l_all_0.25w_0.5e,examples=disagree"
    store = derive(superset, HSKSpec.parse(text), 2, tmp_path / "store")
    assert store.manifest.gold_labels == superset.manifest.gold_labels is not None
    settings, student = DistillSettings(), Student.load(lab.root / "rosita", lab.task)
    from_store(store, Distillation(settings, None, student, lab.task, lab.train), tmp_path / "unused")
    assert lab.train.labels is not None
    other = lab.train.take(np.arange(64))
    other.labels = 1 - lab.train.labels
    with pytest.raises(MismatchError, match="chosen by other gold labels"):
        from_store(store, Distillation(settings, None, student, lab.task, other), tmp_path / "unused")
    with pytest.raises(MismatchError, match="holds 64 examples, and 32 are trained on"):
        fewer = Distillation(settings, None, student, lab.task, lab.train.first(32))
        from_store(store, fewer, tmp_path / "unused")


def test_without_labels_or_their_losses(lab: Lab, tmp_path: Path) -> None:
    spec = HSKSpec.parse("1l_all_all_0.5e,examples=disagree")
    unlabelled = lab.train.take(np.arange(64))
    unlabelled.labels = None
    with pytest.raises(HskdError, match="training examples have no labels"):
        extract(lab.teacher, lab.task, unlabelled, Superset.of([spec], lab.teacher.shape(2)), tmp_path / "superset")
    with pytest.raises(HskdError, match="training examples have no labels"):
        OnlineSource(lab.teacher, lab.train.sep_id, spec, 2).rows_with_hsk(unlabelled)
    with pytest.raises(HskdError, match="extract a superset with --gold-losses"):
        derive(lab.superset, spec, 2, tmp_path / "derived")


def test_a_trial_makes_as_many_steps(lab: Lab, superset: Store, tmp_path: Path) -> None:
    stages = {}
    for text in ("2l_3t_0.25w", "2l_3t_0.25w_0.1e"):
        student, ready = prepared(lab, superset, text, tmp_path / text)
        settings = DistillSettings(hsk_epochs=3, prediction_epochs=1, batch_size=16, hsk_lr=1e-3)
        inputs = TrialInputs(
            settings, lab.task, lab.splits, student.model, 32, ready.source, student.folder, hsk_rows=ready.hsk_rows
        )
        result = run_prepared(inputs, tmp_path / f"trial-{text}", RunOptions("fp32"), About(ready.record))
        stages[text] = result.stages
    whole, few = stages.values()
    assert [stage.steps for stage in few.values()] == [stage.steps for stage in whole.values()] == [12, 4]
    assert few["hsk"].last_loss < few["hsk"].first_loss  # type: ignore[operator]
    assert few["hsk"].last_loss != whole["hsk"].last_loss


@pytest.mark.parametrize("text", ["2l_3t_0.25w,depth=random", "1l_all_0.25w,depth=random,l_top=3,width=pca"])
def test_layers_drawn_for_each_batch(lab: Lab, superset: Store, tmp_path: Path, text: str) -> None:
    spec = HSKSpec.parse(f"{text},precision=fp32")
    store = derive(superset, spec, 2, tmp_path / "store")
    candidates = 3 if "l_top=3" in text else 4
    count = spec.depth.n
    assert store.manifest.mapped == tuple(range(1, candidates + 1))
    offline = StoreSource(store, lab.train, 2)
    online = lab.online(spec)
    loader = BatchDataset(lab.train)
    seen = set()
    for rows in BucketedBatchSampler(lab.train.lengths, 4, seed=1):
        batch = loader.__getitems__(rows)
        one, other = online.kept(batch), offline.kept(batch)
        assert one.layers == other.layers == tuple(range(3 - count, 3)) and one.places == other.places  # type: ignore[operator]
        assert one.places is not None and list(one.places) == sorted(one.places)
        assert torch.equal(one.positions, other.positions)
        torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-4)
        # The targets of the drawn layers equal those stored for these layers.
        held = store.kept(store.rows(batch["example_ids"].numpy()))
        for i, place in enumerate(one.places):
            assert torch.equal(other.values[:, i], held.values[:, place])
            assert torch.equal(other.positions[:, i], held.positions[:, place])
        seen.add(one.places)
    assert len(seen) > 1 and {place for places in seen for place in places} == set(range(candidates))
    traces = [hsk_trace(lab, source, lab.train, tmp_path) for source in (online, offline)]
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)
    with pytest.raises(HskdError, match="depth=random: draws layers for each batch of training"):
        offline.kept(lab.train.collate(np.arange(2)))


def test_attention_received(lab: Lab, superset: Store, tmp_path: Path) -> None:
    spec = HSKSpec.parse("2l_2t_0.25w,length=received,precision=fp32")
    assert Superset.of([spec], lab.teacher.shape(2)).received_layers == (2, 4)
    offline = StoreSource(derive(superset, spec, 2, tmp_path / "store"), lab.train, 2)
    online = OnlineSource(lab.teacher, lab.train.sep_id, spec, 2)
    batch = lab.train.collate(np.arange(12))
    one, other = online.kept(batch), offline.kept(batch)
    assert torch.equal(one.positions, other.positions)
    torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-5)
    with pytest.raises(HskdError, match="extract a superset with --received-layers 2,4"):
        derive(lab.superset, spec, 2, tmp_path / "lacking")
    # Eager attention, computed in loops over the tokens that attend.
    model = lab.teacher.model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        attentions = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    states = superset.states(np.arange(12))
    row = 0
    for b, length in enumerate(lab.train.lengths[:12].tolist()):
        for layer in (1, 3):
            paid = attentions[layer - 1][b, :, :length, :length]
            expected = sum(paid[head, query] for head in range(4) for query in range(length)) / (4 * length)
            found = states.received[layer][row : row + length]
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
        row += length


class _KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("text", ["2l_3t_0.25w_0.3e", "1l_3t_0.25w_0.3e,depth=random"])
@pytest.mark.parametrize("step", [5, 8])
def test_a_resumed_trial_comes_to_the_same(lab: Lab, superset: Store, tmp_path: Path, text: str, step: int) -> None:
    """Passes over few examples do not end with an epoch. Checkpoints do end with one, at steps 4 and 8."""

    def run(name: str, kill_at: int | None) -> dict[str, Any]:
        student, ready = prepared(lab, superset, text, tmp_path / "derived")
        settings = DistillSettings(hsk_epochs=3, prediction_epochs=1, batch_size=16, hsk_lr=1e-3)
        inputs = TrialInputs(
            settings, lab.task, lab.splits, student.model, 32, ready.source, student.folder, hsk_rows=ready.hsk_rows
        )
        steps = 0

        def advance() -> None:
            nonlocal steps
            steps += 1
            if steps == kill_at:
                raise _KilledError

        folder = tmp_path / name
        return run_prepared(inputs, folder, RunOptions("fp32"), About(ready.record), Calls(advance)).as_json()

    whole = run("whole", None)
    with pytest.raises(_KilledError):
        run("killed", step)
    resumed = run("killed", None)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert resumed["metrics"] == whole["metrics"]
