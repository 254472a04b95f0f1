"""Tables of a store's knowledge equal the same numbers computed from the teacher's states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from transformers import BertTokenizerFast, PreTrainedTokenizerBase

from hskd.analysis.cli.knowledge import knowledge as knowledge_command
from hskd.analysis.figures.knowledge import energy_figure, magnitude_figure, token_figure
from hskd.analysis.stats import knowledge
from hskd.analysis.stats.knowledge import (
    ONE_MASK,
    PER_TOKEN,
    energy_by_neurons,
    energy_by_tokens,
    kept_tokens,
    neuron_magnitude,
    sentences,
    token_importance,
)
from hskd.errors import HskdError, MismatchError
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.tasks import load_task, tokenize
from hskd.teachers.loading import Teacher

EVERYTHING = Superset(layers=(0, 1, 2), attention_layers=(1, 2))


@dataclass(frozen=True, eq=False)
class Given:
    """A superset of the tiny teacher, with the tokenizer that decodes it."""

    store: Store
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def rows(self, *examples: int) -> np.ndarray:
        return np.array(examples or range(len(self.store)))


@pytest.fixture(scope="module")
def given(teacher_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("views")
    data = load_task("custom", str(data_folder), ["sentence"], "mood")
    teacher = Teacher.load(str(teacher_folder), data.task)
    train = tokenize(data, teacher.tokenizer, folder / "tokens")["train"]
    return Given(extract(teacher, data.task, train, EVERYTHING, folder / "store"), teacher.tokenizer, folder)


def test_sentences_are_the_texts_and_the_teachers_verdicts(given: Given) -> None:
    table = sentences(given.store, given.tokenizer, examples=64)
    assert table["example_id"].tolist() == given.store.example_ids.tolist()
    assert table["tokens"].tolist() == given.store.lengths.tolist()
    assert table["text"][1].startswith(("a warm", "the story", "great", "i loved", "a cold", "poor", "i hated"))
    assert not table["text"].str.contains("[SEP]", regex=False).any()
    verdicts = given.store.targets(given.rows()).argmax(1)
    assert table["prediction"].tolist() == [("negative", "positive")[i] for i in verdicts]
    assert len(sentences(given.store, given.tokenizer, examples=5)) == 5


def test_token_importance_is_the_attention_of_the_example(given: Given) -> None:
    example = int(given.store.example_ids[7])
    table = token_importance(given.store, example, given.tokenizer)
    states = given.store.states(given.rows(7))
    for layer in (1, 2):
        rows = table[table["layer"] == layer]
        assert np.array_equal(rows["share"], states.attention[layer])
        assert rows["share"].sum() == pytest.approx(1)
        assert rows["position"].tolist() == list(range(len(rows)))
        assert rows["piece"].iloc[0] == "[CLS]" and rows["piece"].iloc[-1] == "[SEP]"


def test_word_pieces_lose_their_marks(given: Given) -> None:
    ids = np.array(given.tokenizer("film12 minutes")["input_ids"])
    pieces, starts = knowledge._pieces(given.tokenizer, ids)
    assert pieces == ["[CLS]", "film", "1", "2", "minute", "s", "[SEP]"]
    assert starts == [True, True, False, False, True, False, True]


def test_kept_tokens_are_those_that_derive_stores(given: Given) -> None:
    example = int(given.store.example_ids[5])
    for text in ("2l_3t_0.5w", "all_2t_all,length=random", "1l_3t_all,l_top=1,att_map=top"):
        spec = HSKSpec.parse(text)
        table = kept_tokens(given.store, example, spec, 2)
        stored = derive(given.store, spec, 2, given.folder / spec.fingerprint).kept(given.rows(5))
        for i, layer in enumerate(stored.layers):
            rows = table[table["student_layer"] == layer]
            assert rows["position"].tolist() == stored.positions[:, i].tolist()
    assert set(table["teacher_layer"]) == {1} and set(table["layer"]) == {2}  # ranked by the attention of another layer


def test_neuron_magnitude_counts_as_the_selector_keeps(given: Given) -> None:
    table = neuron_magnitude(given.store, w=0.1)
    hidden = given.store.states(given.rows()).hidden[2].numpy()
    layer = table[table["layer"] == 2].sort_values("neuron")
    assert np.allclose(layer["mean_abs"], np.abs(hidden).mean(0))
    top = np.argsort(-np.abs(hidden), axis=1, kind="stable")[:, :3]  # a tenth of 32 neurons
    assert np.allclose(layer["top_share"], np.bincount(top.ravel(), minlength=32) / len(hidden))
    ranked = layer.sort_values("rank")
    assert ranked["rank"].tolist() == list(range(1, 33)) and ranked["top_share"].is_monotonic_decreasing


def test_energy_by_neurons_is_the_share_of_the_sum_of_squares(given: Given) -> None:
    table = energy_by_neurons(given.store)
    hidden = given.store.states(given.rows()).hidden[1].numpy().astype(np.float64) ** 2
    shares = hidden / hidden.sum(1, keepdims=True)
    layer = table[table["layer"] == 1].set_index(["mask", "neurons"])["energy"]
    own = np.sort(shares, axis=1)[:, ::-1][:, :8].sum(1).mean()
    fixed = shares[:, np.argsort(-shares.mean(0))[:8]].sum(1).mean()
    assert layer[PER_TOKEN, 0.25] == pytest.approx(own)
    assert layer[ONE_MASK, 0.25] == pytest.approx(fixed)
    assert own > fixed > 0.25
    assert table[table["neurons"] == 1]["energy"].to_numpy() == pytest.approx(1)


def test_energy_by_tokens_follows_the_attention(given: Given) -> None:
    table = energy_by_tokens(given.store, examples=1)
    states = given.store.states(given.rows(0))
    for layer, ranked_by in ((0, 1), (1, 1), (2, 2)):
        attention = states.attention[ranked_by]
        energy = states.hidden[layer].numpy().astype(np.float64) ** 2
        half = 0.5 * len(attention)
        order = np.argsort(-attention, kind="stable")
        rows = table[table["layer"] == layer].set_index("tokens")
        for column, values in (("attention", attention[order]), ("energy", energy.sum(1)[order])):
            whole = values[: int(half)].sum() + (half % 1) * values[int(half)]  # half of the middle one, if odd
            assert rows.loc[0.5, column] == pytest.approx(whole / values.sum(), rel=1e-5)
            assert rows.loc[0, column] == 0 and rows.loc[1, column] == pytest.approx(1)


@pytest.mark.parametrize("view", [neuron_magnitude, energy_by_neurons, energy_by_tokens])
def test_chunks_change_nothing_and_the_limit_is_kept(given: Given, view, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = view(given.store)
    read: list[int] = []
    states = Store.states
    monkeypatch.setattr(Store, "states", lambda store, rows: read.append(len(rows)) or states(store, rows))
    monkeypatch.setattr(knowledge, "_CHUNK_BYTES", 40_000)
    chunked = view(given.store)
    assert sum(read) == 64 and max(read) < 16
    numbers = whole.select_dtypes("number").columns
    assert np.allclose(whole[numbers], chunked[numbers], rtol=1e-6)
    read.clear()
    view(given.store, examples=7)
    assert sum(read) == 7


def test_what_a_store_cannot_show_is_refused(given: Given, tmp_path: Path) -> None:
    example = int(given.store.example_ids[0])
    with pytest.raises(MismatchError, match="not in this store"):
        token_importance(given.store, 1, given.tokenizer)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    with pytest.raises(MismatchError, match="give the tokenizer of the teacher"):
        sentences(given.store, BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")))
    with pytest.raises(HskdError, match="examples = 0"):
        neuron_magnitude(given.store, examples=0)
    with pytest.raises(HskdError, match=r"field w"):
        neuron_magnitude(given.store, w=2)
    derived = derive(given.store, HSKSpec.parse("1l_2t_all"), 2, tmp_path / "derived")
    for view in (neuron_magnitude, energy_by_neurons, energy_by_tokens):
        with pytest.raises(HskdError, match="holds one spec only"):
            view(derived)
    with pytest.raises(HskdError, match="holds one spec only"):
        token_importance(derived, example, given.tokenizer)


def test_layers_without_attention_are_left_out_or_refused(
    given: Given, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    data = load_task("custom", str(data_folder), ["sentence"], "mood")
    teacher = Teacher.load(str(teacher_folder), data.task)
    train = tokenize(data, teacher.tokenizer, tmp_path / "tokens")["train"].first(4)
    store = extract(teacher, data.task, train, Superset((0, 1, 2), (2,)), tmp_path / "store")
    assert set(energy_by_tokens(store)["layer"]) == {2}
    none = extract(teacher, data.task, train, Superset((0, 1, 2), ()), tmp_path / "none")
    with pytest.raises(HskdError, match=r"holds the attention of layers \[\], and none of \[1, 2\]"):
        energy_by_tokens(none)
    with pytest.raises(HskdError, match="--attention-layers"):
        token_importance(none, int(none.example_ids[0]), given.tokenizer)


def test_the_strip_shows_every_token_once_and_a_dot_for_every_kept_one(given: Given) -> None:
    example = int(given.store.example_ids[np.argmax(given.store.lengths)])
    importance = token_importance(given.store, example, given.tokenizer)
    kept = kept_tokens(given.store, example, HSKSpec.parse("1l_3t_all"), 2)
    (axes, bar) = token_figure(importance, kept).axes
    tokens = int(given.store.lengths.max())
    texts = [text.get_text() for text in axes.texts]
    assert [text for text in texts if text in set(importance["piece"])] == (
        importance[importance["layer"] == 1]["piece"].tolist()
    )
    assert len(axes.patches) == 2 * tokens and len(axes.lines) == len(kept) == 3
    assert "layer 2 → student 2" in texts and "layer 1" in texts
    darkest = min(axes.patches, key=lambda cell: sum(to_rgb(cell.get_facecolor())[:2]))
    lightest = max(axes.patches, key=lambda cell: sum(to_rgb(cell.get_facecolor())[:2]))
    assert darkest is not lightest and bar.get_xlim()[1] == pytest.approx(importance["share"].max())
    assert len(token_figure(importance).axes[0].lines) == 0


def test_a_long_sentence_wraps_within_the_page(given: Given) -> None:
    example = int(given.store.example_ids[0])
    once = token_importance(given.store, example, given.tokenizer)
    length = int(once["position"].max()) + 1
    long = once.iloc[np.tile(np.arange(len(once)), 4)].assign(
        position=lambda table: table["position"] + np.repeat(np.arange(4), len(once)) * length
    )
    axes = token_figure(long).axes[0]
    right = max(cell.get_x() + cell.get_width() for cell in axes.patches)
    assert right <= axes.get_xlim()[1]
    assert len({round(cell.get_y(), 3) for cell in axes.patches}) > 2  # more than one line of two layers


def test_figures_draw_every_layer(given: Given) -> None:
    magnitude = magnitude_figure(neuron_magnitude(given.store))
    assert len(magnitude.axes[0].lines) == 3 + 1 and len(magnitude.axes[1].get_yticklabels()) == 3
    energy = energy_figure(energy_by_neurons(given.store), energy_by_tokens(given.store))
    assert [len(axes.lines) for axes in energy.axes[:2]] == [2 * 3 + 1, 2 * 3 + 1]
    for figure in (magnitude, energy):
        figure.draw_without_rendering()


def test_the_command_writes_figures_with_their_tables(
    given: Given, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = given.store.folder, tmp_path / "out"
    knowledge_command(store, out, str(teacher_folder), spec="2l_3t_0.5w", student_layers=2, examples=8)
    names = {"magnitude", "energy", "tokens"}
    figures = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    tables = {"magnitude.csv", "energy_by_neurons.csv", "energy_by_tokens.csv", "tokens.csv", "kept_tokens.csv"}
    assert {path.name for path in out.iterdir()} == figures | tables
    assert capsys.readouterr().out.splitlines()[-1] == f"figure: {out / 'tokens.png'}"
    importance = pd.read_csv(out / "tokens.csv")
    expected = token_importance(given.store, int(given.store.example_ids[0]), given.tokenizer)
    pd.testing.assert_frame_equal(importance, expected, rtol=1e-5, check_dtype=False)


def test_the_command_names_options_that_belong_together(given: Given, teacher_folder: Path, tmp_path: Path) -> None:
    store = given.store.folder
    with pytest.raises(HskdError, match="--spec and --student-layers go together"):
        knowledge_command(store, tmp_path / "out", str(teacher_folder), spec="1l_1t_all")
    with pytest.raises(HskdError, match="needs --tokenizer"):
        knowledge_command(store, tmp_path / "out", example=3)
    assert not (tmp_path / "out").exists()
