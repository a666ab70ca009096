"""Tokenizers: round trips, the ids of GPT-2, masks inside and behind the vocabulary, and files that do not fit."""

from __future__ import annotations

import json
import pickle
from hashlib import sha256

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from xdistill.domains.text.corpus import split
from xdistill.domains.text.documents import Files
from xdistill.domains.text.tokenizer_files import SHIPPED, load_tokenizer
from xdistill.domains.text.tokenizers import END, TextTokenizer, read_tokenizer, train_bpe
from xdistill.errors import UsageError, XDistillError

TEXTS = [
    "It is a truth universally acknowledged, that a single man",
    "  two spaces,\ttab\nand a new line \n\n",
    "naïve café, Ελλάδα, 日本語, 🙂👩‍👩‍👧, \u202eright to left\u202c, \x00\x7f",
    f"literally {END} and [MASK]",
    "",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["shipped", "bytes", "gpt2"])
def test_every_text_comes_back_and_no_text_makes_a_special(name):
    t = load_tokenizer(name)
    for text, ids in zip(TEXTS, t.encode_batch(TEXTS), strict=True):
        assert ids == t.encode(text)
        assert t.decode(ids) == text
        assert not {t.end_id, t.mask_id} & set(ids)
        assert all(0 <= i < t.vocabulary for i in ids)
        assert t.decode([t.end_id, *ids, t.mask_id, t.end_id]) == text


def test_the_shipped_tokenizer_is_the_teachers():
    digest = sha256(SHIPPED.read_bytes()).hexdigest()
    assert digest == "5e7621b205a2bad101dc32dd835dcbf4b80ca2dcf2b2eff5e11808759c29579c"
    t = load_tokenizer("shipped")
    assert (t.end_id, t.mask_id, t.vocabulary, t.begin_id) == (0, 1023, 1024, 0)
    assert t == read_tokenizer(SHIPPED)


def test_bytes_are_their_own_ids():
    t = load_tokenizer("bytes")
    assert (t.end_id, t.mask_id, t.vocabulary) == (256, 257, 258)
    for text in TEXTS:
        assert t.encode(text) == list(text.encode())


def test_gpt2_has_its_published_ids():
    t = load_tokenizer("gpt2")
    assert (t.end_id, t.mask_id, t.vocabulary) == (50256, 50257, 50258)
    assert t.encode("Hello world") == [15496, 995]
    assert t.encode("The quick brown fox\n\njumps") == [464, 2068, 7586, 21831, 198, 198, 73, 8142]
    assert t.fast.token_to_id("!") == 0
    assert t.fast.token_to_id(END) == 50256


def test_a_bpe_is_trained_once_and_is_a_function_of_its_corpus(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text(split("train")[0][:60_000])
    first = load_tokenizer("bpe-600", Files(folder, holdout=0))
    assert (first.vocabulary, first.mask_id, first.end_id) == (600, 599, 0)
    assert first == train_bpe([(folder / "a.txt").read_text()], 600)
    (kept,) = (tmp_path / "cache" / "tokenizers").glob("*.json")
    before = kept.stat().st_mtime_ns
    assert load_tokenizer("bpe-600", Files(folder, holdout=0)) == first
    assert kept.stat().st_mtime_ns == before
    (folder / "a.txt").write_text("another corpus altogether " * 100)
    small = load_tokenizer("bpe-600", Files(folder, holdout=0))
    assert small != first
    assert small.vocabulary == small.mask_id + 1 < 600  # too few words for so many ids: no id is without a meaning


@pytest.mark.parametrize("name", ["bpe-", "bpe-12", "bpe-99999", "bpe-1k", "bpe-²"])
def test_a_bpe_of_no_size_is_one_line(name):
    with pytest.raises(UsageError, match=r"expected bpe-N with N from 512 to 32768"):
        load_tokenizer(name)


def bert(folder, *, config=True):
    """A folder as BERT's: WordPiece, the mask inside the vocabulary, specials added and truncation by default."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[SEP]", "the", "sea", "##side", "was", "calm"]
    t = Tokenizer(models.WordPiece({w: i for i, w in enumerate(tokens)}, unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    t.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[SEP]"])
    t.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 2))
    t.enable_truncation(4)
    t.enable_padding(length=12)
    folder.mkdir(exist_ok=True)
    t.save(str(folder / "tokenizer.json"))
    if config:
        named = {"mask_token": {"content": "[MASK]", "lstrip": True}, "sep_token": "[SEP]", "cls_token": "[CLS]"}
        (folder / "tokenizer_config.json").write_text(json.dumps({**named, "auto_map": {"AutoTokenizer": "evil.py"}}))
    return folder


@pytest.mark.parametrize("config", [True, False])
def test_a_mask_inside_the_vocabulary_keeps_its_id(tmp_path, config):
    t = load_tokenizer(str(bert(tmp_path / "bert", config=config)))
    assert (t.mask_id, t.vocabulary, t.begin_id, t.end_id) == (3, 10, 2, 4)
    assert t.encode("The sea was calm the seaside") == [5, 6, 8, 9, 5, 6, 7]  # no specials, padding or truncation
    assert 3 not in t.encode("the [MASK] was calm")
    assert t.decode([2, 5, 3, 6, 4]).replace(" ", "") == "thesea"
    assert t.decode_visible([2, 5, 3, 3, 6, 4]) == "the<gap:2>sea"


def test_a_tokenizer_without_mask_gets_one_appended(tmp_path):
    t = Tokenizer(models.WordLevel({"a": 0, "b": 7}))
    t.add_special_tokens(["</s>"])
    (tmp_path / "tokenizer.json").write_text(t.to_str())
    found = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (found.end_id, found.mask_id, found.vocabulary, found.begin) == (2, 8, 9, None)


def test_slow_files_are_read_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    t = load_tokenizer(str(tmp_path))
    assert (t.mask_id, t.vocabulary, t.encode("The sea")) == (4, 7, [5, 6])
    assert transformers.__version__


def test_slow_files_without_transformers_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match="pip install transformers"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "is not a file of the tokenizers library"), (b"\xff", "cannot read"), ("[[", "is not a file")],
)
def test_a_damaged_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(XDistillError, match=message) as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_unknown_names_and_folders_without_tokenizer_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"tokenizer=shiped: expected shipped, bytes, gpt2, bpe-N.*shipped"):
        load_tokenizer("shiped")
    pytest.importorskip("transformers")
    with pytest.raises(XDistillError, match="no tokenizer in") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_without_end_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text(Tokenizer(models.WordLevel({"a": 0})).to_str())
    with pytest.raises(XDistillError, match="no end token"):
        load_tokenizer(str(tmp_path))


def test_what_fits_a_network():
    t = TextTokenizer("{}", end_id=50256, mask_id=50257, vocabulary=50258)
    assert t.fits(50258, 50257)
    assert t.fits(50304, 50257)  # padded to a multiple of 128
    assert not t.fits(50432, 50257)
    assert not t.fits(50258, 0)
    t.check_fit(50258, 50257)
    with pytest.raises(UsageError, match=r"has 50258 ids with mask 50257, the checkpoint 1024 with mask 1023"):
        t.check_fit(1024, 1023)
    with pytest.raises(UsageError, match="50257 ids and no mask among them"):
        t.check_fit(50257, 50256)
    cased, uncased = (TextTokenizer("{}", 102, 103, v) for v in (28996, 30522))
    assert not cased.fits(uncased.vocabulary, 103)


def test_it_travels():
    t = load_tokenizer("bytes")
    assert t.encode("a") == [97]  # builds the library's object, which must not travel
    for copy in (pickle.loads(pickle.dumps(t)), TextTokenizer.from_dict(json.loads(json.dumps(t.to_dict())))):
        assert copy == t
        assert copy.fingerprint == t.fingerprint
        assert copy.encode("naïve") == t.encode("naïve")
    assert t.fingerprint != load_tokenizer("shipped").fingerprint


def test_gaps_are_visible():
    t = load_tokenizer("bytes")
    ids = [t.end_id, *t.encode("a "), t.mask_id, t.mask_id, *t.encode(" b"), t.mask_id, t.end_id]
    assert t.decode_visible(ids) == "a <gap:2> b<gap:1>"
    assert t.decode_visible(ids, lambda n: "_" * n) == "a __ b_"
    assert t.decode(ids) == "a  b"
