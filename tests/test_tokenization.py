"""Ids are those of the tokenizer's own call, whatever the tokenizer."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import tiny_gpt2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import CTRLConfig, CTRLTokenizer, PreTrainedTokenizerFast

from prunegpt_utils import corpora, modeling, tokenization
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.evaluation import perplexity

PARTS = [
    "word", "The", "it's", "New York", "New", " York", "New\nline", "<mask>", "KEEP", "42", ".", ":\n",
    "\n\n", "\n", "   ", "  ", " ", "\t", "\u00a0", "é", "e\u0301", "ﬁ", "Å", "日本", "ǅ", "<|end|>", "\u2028",
]  # fmt: skip
LEARNT = ["The words of New York, and it's 42 more words.\n\nA new line: the end"] * 3


def made(model, trainer, normalizer=None, pre_tokenizer=None):
    found = Tokenizer(model)
    found.normalizer, found.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainer(vocab_size=400, special_tokens=["<unk>", "<|end|>"], show_progress=False)
    found.train_from_iterator(LEARNT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<|end|>", unk_token="<unk>")


def bpe(normalizer=None, pre_tokenizer=None):
    """Byte-level BPE, of GPT-2's kind unless told otherwise."""
    levels = pre_tokenizer or pre.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre.ByteLevel.alphabet(),
    )  # fmt: skip
    return made(models.BPE(), lambda **_: trainer, normalizer, levels)


def with_tokens(*tokens, special=False):
    tokenizer = bpe()
    tokenizer.add_tokens([AddedToken(text, **flags) for text, flags in tokens], special)
    return tokenizer


def truncating():
    tokenizer = bpe()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a b", "c"], truncation=True, max_length=8, padding="max_length")
    return tokenizer


def splitting_specials():
    tokenizer = bpe()
    tokenizer.split_special_tokens = True
    return tokenizer


def qwen():
    rule = pre.Split(Regex(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+|[^\s]"), "isolated")
    return bpe(normalizers.NFC(), pre.Sequence([rule, pre.ByteLevel(False, use_regex=False)]))


def sentencepiece():
    cleaned = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return made(
        models.Unigram(),
        lambda **options: trainers.UnigramTrainer(unk_token="<unk>", **options),
        cleaned, pre.Metaspace(prepend_scheme="first"),
    )  # fmt: skip


def wordpiece():
    return made(
        models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer,
        normalizers.BertNormalizer(lowercase=True), pre.BertPreTokenizer(),
    )  # fmt: skip


def slow():
    """A tokenizer without a Rust part."""
    merges = ["t h", "th e</w>", "w o", "wo r", "wor d</w>"]
    parts = ["<unk>", *"abcdefghijklmnopqrstuvwxyz.", *(f"{c}@@" for c in "abcdefghijklmnoprstw")]
    vocabulary = {part: number for number, part in enumerate([*parts, "the", "word", "wor@@"])}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "vocab.json"), Path(folder, "merges.txt")]
        files[0].write_text(json.dumps(vocabulary))
        files[1].write_text("#version\n" + "\n".join(merges) + "\n")
        tokenizer = CTRLTokenizer(*map(str, files))
    tokenizer.add_tokens([AddedToken("New York", lstrip=True)])
    assert not tokenizer.is_fast
    return tokenizer


class Whispering(PreTrainedTokenizerFast):
    """A class whose call does more than ask the Rust part."""

    def _encode_plus(self, text, *arguments, **options):
        lower = [one.lower() for one in text] if isinstance(text, list) else text.lower()
        return super()._encode_plus(lower, *arguments, **options)


def whispering():
    return Whispering(tokenizer_object=bpe().backend_tokenizer, eos_token="<|end|>")


KINDS = {
    "byte-level": bpe,
    "byte-level, space first": lambda: bpe(pre_tokenizer=pre.ByteLevel(add_prefix_space=True)),
    "byte-level, NFC": lambda: bpe(normalizers.NFC()),
    "byte-level, NFKC and lower case": lambda: bpe(
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "split and byte-level": qwen,
    "truncation and padding": truncating,
    "a token with a space": lambda: with_tokens(("New York", {}), ("42", {})),
    "a token with a line break": lambda: with_tokens(("New\nline", {})),
    "a token that begins with a space": lambda: with_tokens((" York", {})),
    "a token that eats spaces before": lambda: with_tokens(("<mask>", {"lstrip": True})),
    "a token that eats spaces after": lambda: with_tokens(("KEEP", {"rstrip": True})),
    "a token that is a word": lambda: with_tokens((" York", {"single_word": True})),
    "a special token with a space": lambda: with_tokens(("New York", {}), special=True),
    "special tokens as text": splitting_specials,
    "Unigram, first space": sentencepiece,
    "WordPiece": wordpiece,
    "a class of its own": whispering,
    "slow": slow,
}


@pytest.fixture(scope="module")
def kinds():
    return {name: make() for name, make in KINDS.items()}


def own_call(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_ids_are_those_of_the_own_call(kinds, kind, parts):
    tokenizer, text = kinds[kind], "".join(parts)
    pieces = tokenization._pieces(text, tokenizer, size=1)  # as many cuts as there may be
    found = [i for piece in tokenization._encode(pieces, tokenizer) for i in piece]
    assert found == own_call(tokenizer, text)


TEXT = "".join(PARTS) * 3
CORPUS = corpora.corpus_of("text", {split: [TEXT, TEXT[::-1], ""] for split in corpora.SPLITS})


@pytest.mark.parametrize("kind", KINDS)
def test_all_layouts_of_every_kind(kinds, kind, tmp_path):
    """Fresh, from the cache, and after the tokenizer was saved and loaded."""
    tokenizer, documents = kinds[kind], CORPUS.splits["test"]
    made = tokenization.tokenize(CORPUS, tokenizer, tmp_path)
    again = tokenization.tokenize(CORPUS, tokenizer, tmp_path)
    for tokens in (made, again):
        assert tokens.ids["train"].tolist() == own_call(tokenizer, CORPUS.text("train"))
        rows, pages = tokens.layouts["rows"]["test"], tokens.layouts["pages"]
        wanted = [own_call(tokenizer, document) for document in documents]
        assert (
            rows.ids.tolist() == [i for ids in wanted for i in ids]
            and rows.tokens == rows.lengths[0]
        )
        if tokenizer.eos_token_id is None:
            assert not pages
        else:
            wanted = [[tokenizer.eos_token_id, *ids] for ids in wanted[:2]]
            assert pages["test"].ids.tolist() == [i for ids in wanted for i in ids]


def test_a_text_is_cut_only_where_no_token_can_reach_over(kinds):
    cut = {kind for kind, t in kinds.items() if len(tokenization._pieces(TEXT, t, 1)) > 1}
    assert cut == {
        "byte-level", "truncation and padding", "a token that begins with a space",
        "special tokens as text",
    }  # fmt: skip


def test_a_tokenizer_saved_while_it_truncated(tmp_path):
    """Any tokenizer is, that was saved after a call with truncation; its file says so."""
    tiny_gpt2().save_pretrained(tmp_path / "model")
    truncating().save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "tokenizer.json").read_text())["truncation"]
    loaded = modeling.load_tokenizer(tmp_path / "model")
    tokens = tokenization.tokenize(CORPUS, loaded, tmp_path / "cache")
    assert tokens.ids["train"].tolist() == own_call(bpe(), CORPUS.text("train"))


def test_a_model_with_a_slow_tokenizer(tmp_path):
    """Asked for a fast one, transformers gives without a word what there is."""
    CTRLConfig().save_pretrained(tmp_path / "model")
    slow().save_pretrained(tmp_path / "model")
    loaded = modeling.load_tokenizer(tmp_path / "model")
    tokens = tokenization.tokenize(CORPUS, loaded, tmp_path)
    assert not loaded.is_fast
    assert tokens.ids["train"].tolist() == own_call(slow(), CORPUS.text("train"))


def change_of(name):
    """The same vocabulary, with one thing changed that decides ids or what a page begins with."""
    tokenizer = bpe()
    if name == "an added token":
        tokenizer.add_tokens(["it's"])
    elif name == "how an added token matches":
        tokenizer.add_tokens([AddedToken("it's", single_word=True)])
    elif name == "another first token":
        tokenizer.eos_token = "The"
    elif name == "special tokens as text":
        tokenizer.split_special_tokens = True
    elif name == "another class":
        tokenizer = whispering()
    elif name == "other merges":
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules["model"]["merges"] = rules["model"]["merges"][:5]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(rules)), eos_token="<|end|>"
        )
    return tokenizer


def test_no_tokenizer_reads_what_another_cached(tmp_path):
    names = ["", "an added token", "how an added token matches", "another first token",
             "special tokens as text", "another class", "other merges"]  # fmt: skip
    for name in names:
        tokenizer = change_of(name)
        tokens = tokenization.tokenize(CORPUS, tokenizer, tmp_path)
        assert tokens.ids["test"].tolist() == own_call(tokenizer, CORPUS.text("test")), name
        assert tokens.layouts["pages"]["test"].ids[0] == tokenizer.eos_token_id, name
    assert len(list(tmp_path.iterdir())) == len(names)


def test_without_first_token_only_pages_are_refused(tmp_path):
    tokenizer, model = bpe(), tiny_gpt2(vocabulary=400)
    tokenizer.eos_token = None
    tokens = tokenization.tokenize(CORPUS, tokenizer, tmp_path)
    assert perplexity(model, tokens, "test", 16)["perplexity"] > 1
    with pytest.raises(ParameterError, match="protocol: 'word-level' begins each page") as error:
        perplexity(model, tokens, "test", 16, "word-level")
    assert "\n" not in str(error.value)


def test_words_that_are_split_at_random_are_refused(tmp_path):
    tokenizer = bpe()
    tokenizer.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(ParameterError, match="model: .* splits words at random"):
        tokenization.tokenize(CORPUS, tokenizer, tmp_path)


def test_a_text_that_the_tokenizer_cannot_read_is_one_line(tmp_path):
    words = Tokenizer(models.WordPiece({"word": 0, "<|end|>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>")
    with pytest.raises(ParameterError, match="model: .* cannot read this text: ") as error:
        tokenization.tokenize(CORPUS, tokenizer, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_model_without_vocabulary_beside_it_is_refused(tmp_path):
    """transformers would make a tokenizer that finds no tokens in any text."""
    tiny_gpt2().save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match="has no tokenizer: no file with a vocabulary"):
        modeling.load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE"}}', "null"])
def test_a_broken_tokenizer_is_one_line(tmp_path, content):
    tiny_gpt2().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ParameterError, match="has no tokenizer") as error:
        modeling.load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_long_name_of_a_text_is_shortened_in_the_cache(tmp_path):
    corpus = corpora.corpus_of("語" * 80, CORPUS.splits)
    tokens = tokenization.tokenize(corpus, bpe(), tmp_path)
    assert tokens.corpus == "語" * 80 and torch.equal(
        tokens.ids["test"], tokenization.tokenize(CORPUS, bpe(), tmp_path).ids["test"]
    )
