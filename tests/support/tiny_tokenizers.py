"""Tiny tokenizers of three families, with vocabularies written by hand."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def wordpiece(*pieces: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer like BERT's: lower case, no accents, ``[CLS]`` and ``[SEP]``."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: i for i, piece in enumerate([*specials, *pieces])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_bpe(*words: str) -> PreTrainedTokenizerFast:
    """Return one like RoBERTa's: bytes, joined to ``words`` (leading spaces count), ``</s></s>`` between two texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in words:
        [(pieces, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
        for end in range(1, len(pieces)):
            pair = (pieces[:end], pieces[end])
            if pair not in merges:
                merges.append(pair)
            vocabulary.setdefault("".join(pair), len(vocabulary))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return _like_roberta(backend)


def unigram(*pieces: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer like XLM-R's: SentencePiece pieces, in which ``▁`` is a space; NFKC."""
    scored = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    # Longer pieces are likelier than their parts.
    scored += [(piece, -10.0 + len(piece)) for piece in pieces]
    backend = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return _like_roberta(backend)


def _like_roberta(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        cls_token="<s>",
        bos_token="<s>",
        sep_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


def shifted(tokenizer: PreTrainedTokenizerFast, by: int = 4) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the same pieces under other ids and other special tokens, as MPNet differs from BERT."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    names = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>"}
    pieces: Sequence[str] = [f"<extra{i}>" for i in range(by)] + [names.get(piece, piece) for piece, _ in vocabulary]
    ids = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = tokenizer.backend_tokenizer.normalizer
    backend.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    backend.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
