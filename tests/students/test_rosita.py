"""The ROSITA model: size, forward pass, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertTokenizerFast, pipeline

from hskd.errors import HskdError
from hskd.students import RositaConfig, RositaForSequenceClassification, RositaModel, load_student

PADDED = torch.tensor([[2, 9, 10, 11, 3, 0, 0, 0], [2, 30, 31, 32, 33, 34, 35, 3]])


def make_rosita(**overrides: object) -> RositaForSequenceClassification:
    """Return a model with three heads of 8 at width 32, which the heads do not divide, and BERT's dropout."""
    settings: dict[str, object] = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "attention_head_size": 8,
        "intermediate_size": 20,
        "embedding_rank": 6,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        **overrides,
    }
    torch.manual_seed(0)
    return RositaForSequenceClassification(RositaConfig(**settings)).eval()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_papers_student_has_the_papers_size(device: str) -> None:
    config = RositaConfig(
        num_hidden_layers=6, num_attention_heads=2, attention_head_size=64, intermediate_size=768, embedding_rank=128
    )
    with torch.device(device):
        model = RositaForSequenceClassification(config)
    assert model.num_parameters() == 14_465_282


def test_fresh_weights_are_drawn_as_berts() -> None:
    model = make_rosita(initializer_range=0.02)
    embeddings = model.get_input_embeddings()
    assert embeddings.weight.shape == (200, 6)
    assert not embeddings.weight[0].any(), "the pad's row is zero, as in BERT"
    for weight in (embeddings.projection.weight, model.bert.encoder.layer[0].attention.self.query.weight):
        assert 0.015 < weight.std() < 0.025
    assert not model.bert.encoder.layer[1].attention.output.dense.bias.any()


def test_sdpa_is_used_and_agrees_with_eager_attention() -> None:
    model = make_rosita()
    assert model.config._attn_implementation == "sdpa"
    mask = (PADDED != 0).long()
    with torch.no_grad():
        sdpa = model(PADDED, attention_mask=mask).logits
        model.set_attn_implementation("eager")
        eager = model(PADDED, attention_mask=mask, output_attentions=True)
    torch.testing.assert_close(sdpa, eager.logits, atol=1e-5, rtol=0)
    assert [tuple(layer.shape) for layer in eager.attentions] == [(2, 3, 8, 8)] * 2


def test_hidden_states_begin_with_the_embeddings_at_full_width() -> None:
    model = make_rosita()
    with torch.no_grad():
        states = model.base_model(PADDED, output_hidden_states=True).hidden_states
        embeddings = model.bert.embeddings(PADDED)
    assert model.base_model is model.bert
    assert [tuple(state.shape) for state in states] == [(2, 8, 32)] * 3
    torch.testing.assert_close(states[0], embeddings, atol=0, rtol=0)


def test_dropout_reaches_hidden_state_zero_in_training() -> None:
    model = make_rosita().train()
    with torch.no_grad():
        first, second = (model.bert(PADDED, output_hidden_states=True).hidden_states[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_padding_does_not_change_logits() -> None:
    model = make_rosita()
    with torch.no_grad():
        padded = model(PADDED, attention_mask=(PADDED != 0).long()).logits[0]
        alone = model(PADDED[:1, :5], attention_mask=torch.ones(1, 5)).logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [6, None])
def test_round_trip_is_exact(tmp_path: Path, rank: int | None) -> None:
    model = make_rosita(embedding_rank=rank)
    model.save_pretrained(tmp_path)
    again, info = RositaForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded = {key: value for key, value in again.config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    assert loaded == {key: model.config.to_dict()[key] for key in loaded}
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(model(PADDED).logits, again(PADDED).logits)


def test_auto_classes_know_it(tmp_path: Path) -> None:
    model = make_rosita()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), RositaConfig)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(tmp_path), RositaForSequenceClassification)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(encoder, RositaModel)
    with torch.no_grad():
        ours, theirs = model.bert(PADDED), encoder(PADDED, output_hidden_states=True)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert len(theirs.hidden_states) == 3


def test_pipeline_reads_it_from_its_folder(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    model = make_rosita(vocab_size=len(tokenizer), id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), top_k=None)
    scores = {entry["label"]: entry["score"] for entry in classify(["a warm and funny film"])[0]}
    with torch.no_grad():
        expected = model(**tokenizer("a warm and funny film", return_tensors="pt")).logits.softmax(-1)[0]
    assert scores == pytest.approx({"bad": expected[0].item(), "good": expected[1].item()}, abs=1e-5)


def test_load_student_reads_half_precision_as_float32(tmp_path: Path) -> None:
    make_rosita().bfloat16().save_pretrained(tmp_path)
    student = load_student(tmp_path)
    assert isinstance(student, RositaForSequenceClassification)
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert student.config._attn_implementation == "sdpa"
    assert not student.training


def test_load_student_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="no such folder"):
        load_student(tmp_path / "missing")
    with pytest.raises(HskdError, match="not a model"):
        load_student(tmp_path)
    make_rosita().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10garbage")
    with pytest.raises(HskdError, match="not a model"):
        load_student(tmp_path)
    RositaModel(make_rosita().config).save_pretrained(tmp_path)
    with pytest.raises(HskdError, match=r"not a model .*\['RositaModel'\], none of which has a head"):
        load_student(tmp_path)
    make_rosita(intermediate_size=24).save_pretrained(tmp_path)
    config = make_rosita().config
    config.architectures = ["RositaForSequenceClassification"]
    config.save_pretrained(tmp_path)
    with pytest.raises(HskdError, match=r"has shape \(24,\), and its config.json expects \(20,\)"):
        load_student(tmp_path)
