"""Grid specs: valid files, error messages, and the resulting trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hskd.errors import HskdError
from hskd.grid.spec import GridSpec, load_grid, presets
from hskd.spec import HSKSpec
from hskd.tasks.builtin.glue import GLUE_TASKS
from hskd.trials.config import Machine, TaskPlan, TrialConfig

HERE = Machine(dtype="fp32", device="cpu", threads=1, build_threads=1)
PRESET_NAMES = list(presets())


def grid(**keys: Any) -> GridSpec:
    return GridSpec.model_validate({"name": "g", **keys})


def arms(spec: GridSpec) -> list[tuple[str, str, int]]:
    """Return arm, label and seed of every trial."""
    trials = spec.trials(HERE)
    return [(trial.settings.arm, trial.spec.label if trial.spec else "", trial.settings.seed) for trial in trials]


def labels(spec: GridSpec) -> list[str]:
    return [one.label for one in spec.specs()]


WRONG = {
    "unknown key": ("name: g\nseeds: 2\nsweep: []\n", 3, ["sweep", "unknown key", "sweeps", "students", "none_lr"]),
    "unknown in training": ("name: g\ntraining:\n  tau: 2\n  epochs: 3\n", 4, ["training.epochs", "hsk_epochs"]),
    "unknown in a student": (
        "name: g\nstudents:\n  - {layers: 2}\n  - {layers: 3, head: 2}\n",
        4,
        ["students.1.head", "unknown key", "heads", "importance_examples"],
    ),
    "unknown in a student of a checkpoint": (
        "name: g\nstudents:\n  - {kind: rosita, layers: 2}\n  - {kind: tinybert, checkpont: m}\n",
        4,
        ["students.1.checkpont", "unknown key", "checkpoint", "general"],
    ),
    "unknown in a general student": (
        "name: g\nstudents:\n  - kind: tinybert\n    general:\n      widht: 64\n",
        5,
        ["students.0.general.widht", "unknown key", "width", "chunks"],
    ),
    "a width that heads do not divide": (
        "name: g\nstudents:\n  - kind: tinybert\n    general: {width: 64, heads: 3}\n",
        4,
        ["students.0.general", "64", "3 heads"],
    ),
    "unknown kind of student": (
        "name: g\nstudents:\n  - {kind: tiny, checkpoint: m}\n",
        3,
        ["students.0", "unknown kind", "rosita", "tinybert"],
    ),
    "a student from nothing": ("name: g\nstudents: [{kind: tinybert}]\n", 2, ["students.0", "checkpoint or general"]),
    "a student from two": (
        "name: g\nstudents: [{kind: tinybert, checkpoint: m, general: {layers: 2}}]\n",
        2,
        ["students.0", "checkpoint or general"],
    ),
    "a word for a student": ("name: g\nstudents: [tinybert]\n", 2, ["students.0", "dictionary", "'tinybert'"]),
    "unknown in a sweep": ("name: g\nsweeps:\n- k: [1]\n  lenght: [left]\n", 4, ["sweeps.0.lenght", "length", "width"]),
    "unknown in the teacher's settings": (
        "name: g\n\nteacher:\n  model: m\n  settings:\n    # slow\n    learning_rate: 1\n",
        7,
        ["teacher.settings.learning_rate", "unknown key", "lr", "epochs"],
    ),
    "unknown in the task": ("name: g\ntask: {nam: mr}\n", 2, ["task.nam", "train_examples", "max_length"]),
    "wrong type": ("name: g\ntraining: {batch_size: many}\n", 2, ["training.batch_size", "integer", "'many'"]),
    "a word for a list": ("name: g\nseeds: 1\nsweeps:\n  - k: 3\n", 4, ["sweeps.0.k", "list", "3"]),
    "half a token": ("name: g\nsweeps:\n  - n: [1]\n    k: [1, 2.5]\n", 4, ["sweeps.0.k.1", "integer", "'all'", "2.5"]),
    "a list for keys": ("name: g\ntask: [mr]\n", 2, ["task", "dictionary"]),
    "out of range": ("name: g\nstudents: [{layers: 0}]\n", 2, ["students.0.layers", "greater than or equal to 1", "0"]),
    "negative rate": ("name: g\nnone_lr: -1\n", 2, ["none_lr", "greater than 0", "-1"]),
    "no seeds": ("name: g\nseeds: 0\n", 2, ["seeds", "greater than or equal to 1"]),
    "an empty list of seeds": ("name: g\nseeds: []\n", 2, ["seeds", "at least 1"]),
    "a negative seed": ("name: g\nseeds:\n  - 1\n  - -1\n", 4, ["seeds.1", "greater than or equal to 0", "-1"]),
    "no students": ("name: g\nstudents: []\n", 2, ["students", "at least 1"]),
    "too wide": ("name: g\nsweeps:\n  - w: [0.1, 1.5]\n", 3, ["sweeps.0.w", "less than or equal to 1", "1.5"]),
    "no tokens": ("name: g\nsweeps:\n  - {k: [0]}\n", 3, ["sweeps.0.k", "greater than or equal to 1", "0"]),
    "unknown selector": (
        "name: g\nsweeps:\n  - k: [1]\n  - k: [1]\n    length: [left, best]\n",
        5,
        ["sweeps.1.length", "'best'", "attention_no_sep", "random"],
    ),
    "unknown selector of a dimension kept whole": (
        "name: g\nsweeps:\n  - k: [1]\n    width: [best]\n",
        4,
        ["sweeps.0.width", "'best'", "magnitude", "uniform"],
    ),
    "unknown precision": ("name: g\nsweeps: [{precision: [int1]}]\n", 2, ["sweeps.0.precision", "int1", "fp16, bf16"]),
    "what does not go together": ("name: g\nsweeps:\n  - {k: [3], length: [cls]}\n", 3, ["sweeps.0", "cls", "k"]),
    "a spec that is none": ("name: g\ninclude:\n  - 1l_3t_0.1w\n  - 1l_3t\n", 4, ["include.1", "1l_3t", "1l_10t_0.1w"]),
    "a spec out of range": ("name: g\nexclude: [0l_3t_0.1w]\n", 2, ["exclude.0", "greater than or equal to 1"]),
    "a spec without full HSK": (
        "name: g\ninclude: ['1l_3t_0.1w,l_top=5', 1l_3t_0.1w]\nexclude: ['all_all_all,l_top=5']\n",
        3,
        ["exclude", "1l_3t_0.1w,depth.l_top=5", "compared with all_all_all,depth.l_top=5", "keep one"],
    ),
    "unknown arm": ("name: g\narms: [none, silver]\n", 2, ["arms", "paper_none", "gold", "shuffled", "silver"]),
    "unknown task": ("name: g\ntask: {name: squad}\n", 2, ["task.name", "squad", "cola", "custom"]),
    "an arm in training": ("name: g\ntraining: {arm: gold, tau: 2}\n", 2, ["training", "arm", "arms", "seeds"]),
    "an unknown switch": (
        "name: g\ntraining:\n  compat:\n    - best_epoch\n    - best_epochs\n",
        5,
        ["training.compat.1", "'best_epochs'", "'zero_dropped'"],
    ),
    "a switch that needs the teacher": (
        "name: g\n\ntraining:\n  compat: [zero_dropped, pads_in_loss]\n",
        3,
        ["training", "pads_in_loss", "a store holds no padding", "online: true"],
    ),
    "a selector without an amount": (
        "name: g\nsweeps:\n  - {length: [cls]}\n",
        3,
        ["sweeps.0", "length chooses nothing where all is kept", "with k"],
    ),
    "a control that needs a store": (
        "name: g\nonline: true\narms: [gold, shuffled]\n",
        3,
        ["arms", "shuffled", "online there is none"],
    ),
    "a switch of regressions": (
        "name: g\ntask: {name: cola}\ntraining: {compat: [gold_regression]}\n",
        3,
        ["training", "gold_regression", "cola is a classification"],
    ),
    "an unknown switch of a student": (
        "name: g\nstudents:\n  - {layers: 2, compat: [dropout]}\n",
        3,
        ["students.0.compat.0", "'dropout'", "'taylor_dropout'"],
    ),
    "missing name": ("seeds: 2\n", 1, ["name", "required"]),
    "a name that is a path": ("name: ../elsewhere\n", 1, ["name", "pattern"]),
    "not YAML": ("name: g\nsweeps: [{k: [1]\nseeds: 2\n", 3, ["not valid YAML"]),
    "a tab": ("name: g\n\tseeds: 2\n", 2, ["not valid YAML"]),
}


@pytest.mark.parametrize(("text", "line", "words"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_answered_with_file_line_and_what_is_allowed(
    text: str, line: int, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(HskdError) as raised:
        load_grid(str(file))
    message = str(raised.value)
    assert str(file) in message
    assert f"line {line}" in message
    missing = [word for word in words if word not in message]
    assert not missing, message
    assert "tuple" not in message, "what Python has, YAML has not"


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "3\n"])
def test_what_has_no_keys_is_answered_with_those_there_are(text: str, tmp_path: Path) -> None:
    file = tmp_path / "grid.yml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(HskdError, match=r"grid\.yml: expected keys.*name.*students.*sweeps"):
        load_grid(str(file))


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("name: g\nseed: 2\ntraining:\n  tau: -1\n", encoding="utf-8")
    with pytest.raises(HskdError) as raised:
        load_grid(str(file))
    assert "line 2: seed" in str(raised.value)
    assert "line 4: training.tau" in str(raised.value)


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(HskdError) as raised:
        load_grid("mr-dept")
    assert all(name in str(raised.value) for name in PRESET_NAMES)


def test_missing_file_and_file_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="no such file"):
        load_grid(str(tmp_path / "none.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(HskdError, match=r"bytes\.yaml.*UTF-8"):
        load_grid(str(tmp_path / "bytes.yaml"))


def test_the_presets_are_there() -> None:
    presets = {"demo", "demo-quick", "mr-depth", "mr-length", "mr-width", "mr-joint", "mr-precision", "mr-tinybert"}
    presets |= {"wnut17", "embed-minilm", "trecqa", "banking77", "mr-mpnet", "mr-mpnet-bert"}
    presets |= {"codec-small", "codec-wide", "codec-tinybert"}
    assert presets | {f"paper-{task}" for task in GLUE_TASKS} == set(PRESET_NAMES)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_expand(name: str) -> None:
    preset = load_grid(name)
    assert preset.name == name
    trials = preset.trials(HERE)
    assert len({trial.id for trial in trials}) == len(trials)
    of_seed = {
        seed: [(trial.settings.arm, trial.spec, trial.student) for trial in trials if trial.settings.seed == seed]
        for seed in preset.seed_list
    }
    assert all(of_seed[seed] == of_seed[preset.seed_list[0]] for seed in preset.seed_list)
    first = of_seed[preset.seed_list[0]]
    assert [arm for arm, *_ in first].count("none") == len(preset.students)
    whole = (
        len(preset.seed_list)
        * len(preset.students)
        * (1 + len(preset.fulls()) + len(preset.specs()) + len(preset.arms))
    )
    more = preset.more_seeds
    further = set(range(more.seeds)) - set(preset.seed_list) if more else set()
    settled = 1 + len(preset.fulls()) + (len(more.specs) if more else 0)
    assert len(trials) == whole + len(further) * len(preset.students) * settled
    fulls = [spec for arm, spec, _ in first if arm == "full" and spec]
    assert len({full.canonical for full in fulls}) == len(fulls) / len(preset.students) > 0
    mappings = {spec.full().depth for arm, spec, _ in first if arm == "spec" and spec}
    assert mappings <= {full.depth for full in fulls}


def test_a_grid_of_nothing_is_none_and_full() -> None:
    assert arms(grid()) == [("none", "", 0), ("full", "all_all_all", 0)]
    assert arms(grid(sweeps=[{}])) == arms(grid())


def test_what_is_to_be_settled_has_more_seeds() -> None:
    rest = {"sweeps": [{"k": [1, 3]}], "arms": ["gold"], "seeds": 2}
    settled = grid(**rest, more_seeds={"seeds": 4, "specs": ["all_3t_all"]})
    seeds: dict[str, list[int]] = {}
    for arm, label, seed in arms(settled):
        seeds.setdefault(label or arm, []).append(seed)
    assert seeds == {
        "none": [0, 1, 2, 3],
        "gold": [0, 1],
        "all_all_all": [0, 1, 2, 3],
        "all_1t_all": [0, 1],
        "all_3t_all": [0, 1, 2, 3],
    }
    assert arms(grid(**rest, more_seeds={"seeds": 2})) == arms(grid(**rest))
    with pytest.raises(ValueError, match="all_5t_all is not a spec of this grid"):
        grid(**rest, more_seeds={"seeds": 4, "specs": ["all_5t_all"]})


def test_full_comes_once_for_each_mapping_and_precision() -> None:
    found = grid(sweeps=[{"n": [1, 2], "l_top": [3, 4]}], include=["1l_1t_0.1w", "2l_1t_0.1w,precision=bf16"])
    assert [full.label for full in found.fulls()] == [
        "all_all_all,depth.l_top=3",
        "all_all_all,depth.l_top=4",
        "all_all_all",
        "all_all_all,precision=bf16",
    ]
    assert all(full == full.full() for full in found.fulls())


def test_full_hsk_that_a_sweep_writes_is_the_arm_full() -> None:
    found = grid(sweeps=[{"l_top": [3, 4]}, {"precision": ["fp32"]}], include=["all_all_all"])
    assert found.specs() == []
    assert [full.label for full in found.fulls()] == [
        "all_all_all,depth.l_top=3",
        "all_all_all,depth.l_top=4",
        "all_all_all,precision=fp32",
        "all_all_all",
    ]


def test_a_sweep_of_one_dimension_keeps_the_others_whole() -> None:
    assert labels(grid(sweeps=[{"n": [1, 2]}])) == ["1l_all_all", "2l_all_all"]
    by_length = grid(sweeps=[{"k": [1, 3], "length": ["attention_no_sep", "left"]}])
    assert labels(by_length) == ["all_1t_all", "all_1t_all,length=left", "all_3t_all", "all_3t_all,length=left"]
    assert labels(grid(sweeps=[{"w": [0.1], "width": ["magnitude", "random"]}])) == [
        "all_all_0.1w",
        "all_all_0.1w,width=random",
    ]
    for sweep in ({"n": [1]}, {"k": [2]}, {"w": [0.3]}):
        [spec] = grid(sweeps=[sweep]).specs()
        whole = HSKSpec()
        same = [
            name for name in ("depth", "length", "width", "precision") if getattr(spec, name) == getattr(whole, name)
        ]
        assert len(same) == 3


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.01, 0.1, 0.5]), min_size=1, unique=True),
    st.lists(st.sampled_from(["attention", "left", "random"]), min_size=1, unique=True),
)
def test_a_joint_sweep_is_a_product(n: list[int], k: list[int], w: list[float], length: list[str]) -> None:
    found = grid(sweeps=[{"n": n, "k": k, "w": w, "length": length}])
    assert len(found.specs()) == len(set(labels(found))) == len(n) * len(k) * len(w) * len(length)
    assert len(found.trials(HERE)) == 2 + len(found.specs())


def test_include_and_exclude() -> None:
    found = grid(
        sweeps=[{"n": [1, 2], "k": [1, 3], "w": [0.1]}, {"n": [2], "k": [3, 8], "w": [0.1]}],
        include=["1l_1t_0.1w", "2l_5t_0.2h"],
        exclude=["1l_3t_0.1w", "9l_9t_0.9w"],
    )
    assert labels(found) == ["1l_1t_0.1w", "2l_1t_0.1w", "2l_3t_0.1w", "2l_8t_0.1w", "2l_5t_0.2w"]
    coarse = {"include": ["1l_3t_0.1w", "1l_3t_0.1w,precision=int4"]}
    assert [full.label for full in grid(**coarse).fulls()] == ["all_all_all", "all_all_all,precision=int4"]
    without = grid(**coarse, exclude=["all_all_all,precision=int4"])
    assert arms(without) == [
        ("none", "", 0),
        ("full", "all_all_all", 0),
        ("spec", "1l_3t_0.1w", 0),
        ("spec", "1l_3t_0.1w,precision=int4", 0),
    ]
    everything = grid(include=["1l_1t_0.1w"], exclude=["1l_1t_0.1w", "all_all_all"])
    assert [arm for arm, *_ in arms(everything)] == ["none", "full"], "these two are always there"


def test_arms_are_added_by_name_for_every_seed_and_student() -> None:
    found = grid(
        arms=["shuffled", "gold", "paper_none", "gold"],
        seeds=[7, 3, 7],
        include=["1l_1t_0.1w", "1l_1t_0.1w,l_top=3"],
        students=[{"layers": 2}, {"layers": 3}, {"layers": 2}],
    )
    trials = found.trials(HERE)
    assert len({trial.id for trial in trials}) == len(trials) == 2 * 2 * 9
    one = [(arm, label) for arm, label, seed in arms(found) if seed == 7][:9]
    assert one == [
        ("none", ""),
        ("gold", ""),
        ("paper_none", ""),
        ("full", "all_all_all"),
        ("full", "all_all_all,depth.l_top=3"),
        ("shuffled", "all_all_all"),
        ("shuffled", "all_all_all,depth.l_top=3"),
        ("spec", "1l_1t_0.1w"),
        ("spec", "1l_1t_0.1w,depth.l_top=3"),
    ]
    assert [trial.settings.seed for trial in trials] == [7] * 18 + [3] * 18, "seed by seed"


def test_none_may_have_a_learning_rate_of_its_own() -> None:
    rates = {
        trial.settings.arm: trial.settings.prediction_lr
        for trial in grid(none_lr=1e-3, arms=["gold", "shuffled"], training={"prediction_lr": 1e-4}).trials(HERE)
    }
    assert rates == {"none": 1e-3, "gold": 1e-3, "full": 1e-4, "shuffled": 1e-4}
    assert {t.settings.prediction_lr for t in grid(training={"prediction_lr": 1e-4}).trials(HERE)} == {1e-4}


WRITTEN: dict[str, Any] = {
    "name": "g",
    "task": {"name": "custom", "data": "d", "text_columns": ["a"], "label_column": "b", "max_length": 64},
    "teacher": {"model": "m", "examples": 9, "settings": {"epochs": 1, "lr": 0.1}},
    "students": [{"layers": 2, "heads": 2, "ffn": 8}],
    "training": {"hsk_epochs": 1, "prediction_epochs": 2, "hsk_lr": 0.1, "tau": 2.0},
    "include": ["1l_1t_0.1w"],
}


def ids(written: dict[str, Any], machine: Machine = HERE) -> set[str]:
    return {trial.id for trial in GridSpec.model_validate(written).trials(machine)}


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("task", {"data": "e"}),
        ("task", {"text_columns": ["a", "c"]}),
        ("task", {"label_column": "c"}),
        ("task", {"max_length": 32}),
        ("task", {"train_examples": 5}),
        ("teacher", {"model": "n"}),
        ("teacher", {"examples": 8}),
        ("teacher", {"fine_tuned": True}),
        *[("teacher", {"settings": {"epochs": 1, "lr": 0.1, **more}}) for more in ({"lr": 0.2}, {"seed": 1})],
        *[("training", {key: 3}) for key in ("hsk_epochs", "prediction_epochs", "hsk_lr", "prediction_lr", "tau")],
        *[("training", {key: 3}) for key in ("batch_size", "weight_decay", "max_grad_norm")],
        ("training", {"warmup": 0.5}),
        *[("students", {key: 3}) for key in ("layers", "heads", "ffn", "rank", "importance_examples")],
    ],
    ids=str,
)
def test_any_setting_changes_every_id(section: str, change: dict[str, Any]) -> None:
    old = WRITTEN[section]
    new = [old[0] | change] if section == "students" else old | change
    assert not ids(WRITTEN) & ids(WRITTEN | {section: new})


@pytest.mark.parametrize(
    "change", [{"threads": 2}, {"dtype": "bf16"}, {"device": "cuda"}, {"build_threads": 2}], ids=str
)
def test_what_changes_the_bits_changes_every_id(change: dict[str, Any]) -> None:
    assert not ids(WRITTEN) & ids(WRITTEN, replace(HERE, **change))


def test_ids_are_those_of_before_there_was_another_kind_of_student() -> None:
    """Results on disk are found by these ids."""
    assert {trial.settings.arm: trial.id for trial in GridSpec.model_validate(WRITTEN).trials(HERE)} == {
        "none": "b6c574c93ee8c554",
        "full": "0a3fae12b1073d1e",
        "spec": "d36d84228567dcdf",
    }
    written = WRITTEN | {"students": [{"kind": "rosita", **WRITTEN["students"][0]}]}
    assert ids(written) == ids(WRITTEN)
    beside = WRITTEN | {"students": [*WRITTEN["students"], {"kind": "tinybert", "checkpoint": "someone/tiny"}]}
    assert ids(WRITTEN) < ids(beside)


@pytest.mark.parametrize(
    "student",
    [
        {"kind": "tinybert", "checkpoint": "someone/other"},
        {"kind": "tinybert", "checkpoint": "someone/tiny", "seed": 1},
        {"kind": "tinybert", "general": {"layers": 2}},
        {"kind": "tinybert", "general": {"layers": 2, "chunks": 7}},
    ],
    ids=str,
)
def test_a_student_of_a_checkpoint_is_part_of_the_id(student: dict[str, Any]) -> None:
    first = WRITTEN | {"students": [{"kind": "tinybert", "checkpoint": "someone/tiny"}]}
    assert not ids(first) & ids(WRITTEN)
    assert not ids(first) & ids(WRITTEN | {"students": [student]})
    for trial in GridSpec.model_validate(WRITTEN | {"students": [student]}).trials(HERE):
        again = TrialConfig.model_validate_json(trial.model_dump_json())
        assert again == trial
        assert again.id == trial.id


def test_seed_and_spec_change_the_id_and_the_name_does_not() -> None:
    base = ids(WRITTEN)
    assert ids(WRITTEN | {"name": "other", "seeds": 1}) == base
    assert len(ids(WRITTEN | {"seeds": 3})) == 3 * len(base)
    assert base < ids(WRITTEN | {"seeds": 3})
    assert len(ids(WRITTEN | {"include": ["1l_1t_0.2w"]}) & base) == 2, "none and full are the same"
    assert not ids(WRITTEN | {"include": []}) - base


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(one) for one in value] if isinstance(value, list) else value


def test_the_order_of_keys_and_the_way_of_writing_do_not_matter(tmp_path: Path) -> None:
    texts = [
        yaml.safe_dump(WRITTEN, sort_keys=False),
        yaml.safe_dump(reordered(WRITTEN), sort_keys=False),
        yaml.safe_dump(WRITTEN, default_flow_style=True),
        yaml.safe_dump(WRITTEN).replace("tau: 2.0", "tau: 2").replace("0.1w", "0.10h"),
    ]
    files = [tmp_path / f"{i}.yaml" for i in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    found = [{trial.id for trial in load_grid(str(file)).trials(HERE)} for file in files]
    assert found == [ids(WRITTEN)] * len(texts)


def test_a_config_survives_json() -> None:
    for trial in grid(include=["1l_1t_0.1w,l_top=1", "1l_1t_0.1w,l_top=1.0"], arms=["gold"]).trials(HERE):
        again = TrialConfig.model_validate_json(trial.model_dump_json())
        assert again == trial
        assert again.id == trial.id


def test_other_content_of_the_same_files_is_another_trial(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("sentence,mood\na,good\n")
    task = TaskPlan(name="custom", data=str(data), text_columns=("sentence",), label_column="mood")
    grid = GridSpec(name="g", task=task)
    machine = Machine("fp32", "cpu", 1, 2)
    before = [trial.id for trial in grid.trials(machine)]
    assert [trial.id for trial in grid.trials(machine)] == before
    (data / "train.csv").write_text("sentence,mood\na,bad\n")
    assert not set(before) & {trial.id for trial in grid.trials(machine)}


def test_online_trials_are_others_and_take_the_switches_that_need_the_teacher() -> None:
    plain, online = (
        grid(training={}).trials(HERE),
        grid(online=True, training={"compat": ["teacher_dropout"]}).trials(HERE),
    )
    assert [trial.id for trial in grid(online=False, training={}).trials(HERE)] == [trial.id for trial in plain]
    assert not {trial.id for trial in online} & {trial.id for trial in plain}
    assert all(trial.online for trial in online) and not any(trial.online for trial in plain)


def test_switches_make_other_trials_in_whatever_order_they_are_written() -> None:
    plain = grid(training={}).trials(HERE)
    none, one, other = (
        grid(training={"compat": names}).trials(HERE)
        for names in ([], ["zero_dropped", "best_epoch"], ["best_epoch", "zero_dropped", "best_epoch"])
    )
    assert [trial.id for trial in none] == [trial.id for trial in plain]
    assert [trial.id for trial in one] == [trial.id for trial in other]
    assert not {trial.id for trial in one} & {trial.id for trial in plain}
    assert all(trial.settings.compat == ("best_epoch", "zero_dropped") for trial in one)
    assert grid(task={"name": "stsb"}, training={"compat": ["gold_regression"]}).trials(HERE)
    sizes = {"layers": 2, "heads": 2, "ffn": 24}
    two = grid(students=[sizes, {**sizes, "compat": ["taylor_dropout"]}]).trials(HERE)
    names = list(dict.fromkeys(trial.student_name for trial in two))
    assert names == ["rosita-2l-2h-24ffn", "rosita-2l-2h-24ffn-taylor_dropout"]


def test_a_field_of_a_selector_is_swept() -> None:
    found = grid(sweeps=[{"k": [2], "length": ["left", "random"], "length.seed": [0, 7]}])
    assert labels(found) == [
        "all_2t_all,length=left",
        "all_2t_all,length=random",
        "all_2t_all,length=random,length.seed=7",
    ]
    found = grid(
        sweeps=[{"k": [2], "length.att_map": ["same", "top"], "w": [0.1], "width": ["random"], "width.seed": [3]}]
    )
    assert labels(found) == [
        "all_2t_0.1w,width=random,width.seed=3",
        "all_2t_0.1w,length.att_map=top,width=random,width.seed=3",
    ]


@pytest.mark.parametrize(
    ("key", "line", "words"),
    [
        ("length.sed: [1]", 4, ["sweeps.0.length.sed", "(random) has a field sed", "length.seed"]),
        ("width.seed: [1]", 4, ["sweeps.0.width.seed", "(magnitude) has a field seed"]),
        ("length.seed: [-1]", 4, ["sweeps.0.length.seed", "greater than or equal to 0", "-1"]),
        ("length.seed: 1", 4, ["sweeps.0.length.seed", "list", "1"]),
        ("length.seed: []", 4, ["sweeps.0.length.seed", "at least 1"]),
        ("length.k: [1]", 4, ["sweeps.0.length.k", "unknown key; write k instead", "n, l_top, k, length"]),
        ("length.selector: [left]", 4, ["sweeps.0.length.selector", "write length instead"]),
        ("lenght.seed: [1]", 4, ["sweeps.0.lenght.seed", "unknown key", "length.seed", "width.seed", "length.att_map"]),
        ("seed: [1]", 4, ["sweeps.0.seed", "unknown key", "length.seed"]),
    ],
)
def test_a_field_that_cannot_be_swept_is_named_with_its_line(
    key: str, line: int, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"name: g\nsweeps:\n  - {{k: [1], length: [random],\n     {key}}}\n", encoding="utf-8")
    with pytest.raises(HskdError) as raised:
        load_grid(str(file))
    missing = [word for word in (f"line {line}", *words) if word not in str(raised.value)]
    assert not missing, raised.value
