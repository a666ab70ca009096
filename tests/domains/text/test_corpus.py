"""Corpora: what is read and what is skipped, the held-out share, and the cache of tokens that is never in memory."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xdistill.domains.text import token_cache
from xdistill.domains.text.corpus import novels, split
from xdistill.domains.text.data import corpus, documents_of
from xdistill.domains.text.documents import Files
from xdistill.domains.text.readers import cut, not_utf8
from xdistill.domains.text.text_report import TextReport
from xdistill.domains.text.token_cache import token_stream
from xdistill.domains.text.tokenizer_files import load_tokenizer
from xdistill.domains.text.tokenizers import END
from xdistill.errors import UsageError, XDistillError

BYTES = load_tokenizer("bytes")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def read(path, **options):
    report = TextReport()
    pieces = list(Files(path, **options).pieces(report))
    return [p.text for p in pieces], report


def test_all_formats_in_the_order_of_their_names(folder):
    (folder / "b.txt").write_text("second\r\nline\r\n")
    (folder / "a").mkdir()
    (folder / "a" / "z.md").write_text("\ufeff# first\n")
    rows = [{"text": "third"}, {"other": 1}, {"text": 5}, {"text": "naïve"}]
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\nno json\n")
    pq.write_table(pa.table({"text": ["fifth", None, " "], "id": [1, 2, 3]}), folder / "d.parquet")
    (folder / "e.txt").write_text(f"{END}\nsixth\n{END}\nseventh {END}\n{END}\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("no")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.txt").write_text("no")
    texts, report = read(folder, holdout=0)
    assert texts == ["# first", "second\nline", "third", "naïve", "fifth", "sixth", f"seventh {END}"]
    assert report.counts == {"no text": 3, "not JSON": 1, "empty document": 2, "other format": 1}
    assert report.examples["no text"] == ["c.jsonl line 2", "c.jsonl line 3", "d.parquet row 2"]
    assert (report.files, report.documents) == (5, 7)


def test_the_key_names_what_holds_the_text(folder):
    (folder / "a.jsonl").write_text('{"body": "one", "text": "two"}\n')
    pq.write_table(pa.table({"body": ["three"]}), folder / "b.parquet")
    assert read(folder, key="body", holdout=0)[0] == ["one", "three"]
    texts, report = read(folder, holdout=0)
    assert texts == ["two"]
    assert report.examples == {"no text": ["b.parquet (columns body)"]}


@pytest.mark.parametrize("at", [0, 3, 11, 12, 13, 40])
def test_the_offset_of_a_byte_that_is_not_utf8(tmp_path, monkeypatch, at):
    monkeypatch.setattr("xdistill.domains.text.readers.BLOCK", 12)
    path = tmp_path / "x.txt"
    path.write_bytes(b"a" * at + b"\xff" + b"b" * 30)
    assert not_utf8(path) == at
    path.write_text("ééé日本🙂" * 10)
    assert not_utf8(path) is None
    path.write_bytes("🙂".encode()[:2])
    assert not_utf8(path) == 0


def test_text_that_is_not_utf8_is_skipped_or_an_error_when_nothing_is_left(folder):
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "lines.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud800"}\n')
    pq.write_table(pa.table({"text": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())}), folder / "p.parquet")
    with pytest.raises(XDistillError, match=r"no usable document in .*: not UTF-8 4x, e.g. latin.txt \(byte 3\)") as e:
        read(folder)
    assert "\n" not in str(e.value)
    (folder / "good.txt").write_text("good")
    texts, report = read(folder)
    assert texts == ["good"]
    assert "lines.jsonl line 1 (byte 13 of the line)" in report.examples["not UTF-8"]


def test_a_damaged_parquet_file_is_skipped(folder):
    (folder / "a.parquet").write_bytes(b"PAR1 not really")
    (folder / "b.txt").write_text("good")
    texts, report = read(folder, holdout=0)
    assert texts == ["good"]
    assert report.counts == {"unreadable file": 1}


def test_empty_missing_and_other_folders_are_one_line(folder):
    for make, message in (
        (lambda: None, "no text file in"),
        (lambda: (folder / "x.png").write_bytes(b""), "no text file in"),
        (lambda: (folder / "x.txt").write_text(" \n"), "no usable document in .*: empty document 1x, e.g. x.txt"),
    ):
        make()
        with pytest.raises(XDistillError, match=message) as error:
            corpus(documents_of(folder), BYTES, "train", 16)
        assert "\n" not in str(error.value)
    with pytest.raises(XDistillError, match="is no file or folder"):
        read(folder / "nowhere")
    with pytest.raises(UsageError, match=r"holdout=1\.5: expected a share"):
        Files(folder, holdout=1.5)


def test_a_corpus_shorter_than_a_context_is_one_line(folder):
    (folder / "a.txt").write_text("short")
    assert len(corpus(documents_of(folder, holdout=0), BYTES, "train", 8)[0]) == 1  # 5 bytes and END
    with pytest.raises(
        XDistillError, match=r"has 6 tokens, less than one context needs \(7\): give more text or lower"
    ):
        corpus(documents_of(folder, holdout=0), BYTES, "train", 9)
    with pytest.raises(UsageError, match="no validation split with holdout=0"):
        corpus(documents_of(folder, holdout=0), BYTES, "validation", 8)
    with pytest.raises(UsageError, match="split=test: expected train or validation"):
        corpus(documents_of(folder), BYTES, "test", 8)
    with pytest.raises(UsageError, match="context=2: expected 3 or more"):
        corpus(documents_of(folder), BYTES, "train", 2)


def test_the_report_survives_the_cache_and_is_saved(folder, tmp_path):
    (folder / "a.txt").write_text("good " * 20)
    (folder / "b.txt").write_bytes(b"\xff")
    documents = documents_of(folder)
    fresh, kept = (corpus(documents, BYTES, "train", 16)[1] for _ in range(2))
    assert fresh == kept
    assert kept.table().row_count == 1
    kept.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["skipped"]["not UTF-8"]["count"] == 1


# ---- pieces and splits


@pytest.mark.parametrize("name", ["shipped", "gpt2", "bytes"])
def test_pieces_of_a_long_document_have_its_ids(name):
    t = load_tokenizer(name)
    text = split("validation")[0][:30_000]
    pieces = list(cut([text[i : i + 777] for i in range(0, len(text), 777)], limit=1000))
    assert "".join(p for p, _ in pieces) == text.strip()
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(p) for p, _ in pieces) <= 2000
    assert [i for ids in t.encode_batch([p for p, _ in pieces]) for i in ids] == t.encode(text.strip())


def test_text_without_spaces_is_cut_all_the_same():
    text = "日本語" * 4000
    pieces = [p for p, _ in cut([text], limit=1000)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 2000


def test_held_out_documents_stay_so_whatever_is_added(folder):
    documents = [f"document {i} " * 3 for i in range(1000)]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents[:500]))
    held = {p.text for p in Files(folder, holdout=0.1).pieces(TextReport()) if p.split == "validation"}
    assert 20 < len(held) < 80
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in reversed(documents)))
    more = {p.text for p in Files(folder, holdout=0.1).pieces(TextReport()) if p.split == "validation"}
    assert held < more
    stream = token_stream(Files(folder, holdout=0.1), BYTES)
    train, validation = (bytes_of(stream.ids(s)) for s in ("train", "validation"))
    assert set(validation.split("\0")[:-1]) == more
    assert not set(train.split("\0")[:-1]) & set(validation.split("\0")[:-1])
    assert stream.report.held_out == len(more)


def bytes_of(ids):
    """The text of byte ids, END as a zero."""
    return bytes(0 if i == BYTES.end_id else int(i) for i in ids).decode()


def test_of_few_documents_the_end_of_the_stream_is_held_out(folder):
    (folder / "a.txt").write_text("0123456789" * 100)
    stream = token_stream(Files(folder, holdout=0.1), BYTES)
    assert (len(stream.ids("train")), len(stream.ids("validation"))) == (901, 100)
    assert bytes_of(stream.ids("train")) + bytes_of(stream.ids("validation")) == "0123456789" * 100 + "\0"


# ---- the embedded corpus


def test_the_embedded_corpus_is_split_by_novel():
    assert [t for t in novels() if novels()[t] in split("validation")] == ["Persuasion"]
    assert len(split("train")) == 5
    assert novels()["EMMA"].startswith("Emma Woodhouse, handsome, clever, and rich")
    assert novels()["NORTHANGER ABBEY"].startswith("ADVERTISEMENT BY THE AUTHORESS")
    assert not any("Signet Classic" in text for text in novels().values())


def test_zero_shot_text_has_no_ends(folder):
    (folder / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    wrapped, _ = corpus(documents_of(folder, holdout=0), BYTES, "train", 6)
    assert bytes_of(wrapped.ids) == "one\0two\0"
    bare, _ = corpus(documents_of(folder, holdout=0), BYTES, "train", 6, ends=False, wrap=False)
    assert bare.sequence(0).tolist() == list(b"onetwo")


# ---- the cache


def streams(cache):
    return sorted(p for p in (cache / "tokens").iterdir() if p.is_dir())


def test_the_cache_is_used_again_and_made_anew_when_anything_changes(folder, cache, monkeypatch):
    (folder / "a.txt").write_text("some text " * 50)
    made = token_stream(Files(folder), BYTES)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_build", None)  # would fail
        assert token_stream(Files(folder), BYTES).folder == made.folder
    token_stream(Files(folder), load_tokenizer("shipped"))
    token_stream(Files(folder), BYTES, ends=False)
    token_stream(Files(folder, holdout=0.2), BYTES)
    (folder / "a.txt").write_text("some more " * 50)
    assert bytes_of(token_stream(Files(folder, holdout=0), BYTES).ids("train")).startswith("some more")
    assert len(streams(cache)) == 5
    assert not list((cache / "tokens").glob(".*"))


@pytest.mark.parametrize("damage", ["ids", "manifest", "empty", "missing"])
def test_a_damaged_cache_is_made_again(folder, damage):
    (folder / "a.txt").write_text("some text " * 50)
    first = token_stream(Files(folder), BYTES)
    ids, manifest = first.folder / "ids.bin", first.folder / "manifest.json"
    wanted = ids.read_bytes()
    if damage == "ids":
        ids.write_bytes(wanted[:-2])
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"cut": ', '"cut": 1'))
    elif damage == "empty":
        manifest.write_text("")
    else:
        manifest.unlink()
    again = token_stream(Files(folder), BYTES)
    assert np.array_equal(again.ids("train"), np.frombuffer(wanted, "<u2")[: again.manifest["cut"]])
    assert (again.folder / "ids.bin").read_bytes() == wanted


def test_of_several_that_ask_one_makes_it(folder, monkeypatch):
    (folder / "a.txt").write_text("some text " * 5000)
    builds = []
    build = token_cache._build
    monkeypatch.setattr(token_cache, "_build", lambda *a: (builds.append(1), build(*a)))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: token_stream(Files(folder), BYTES).ids("train").sum(), range(4)))
    assert len(builds) == 1
    assert len(set(made)) == 1


def test_a_failed_build_leaves_nothing_behind(folder, cache):
    (folder / "a.txt").write_bytes(b"\xff")
    with pytest.raises(XDistillError, match="no usable document"):
        token_stream(Files(folder), BYTES)
    assert not streams(cache)


def test_a_cache_that_cannot_be_written_is_one_line(folder, tmp_path, monkeypatch):
    (folder / "a.txt").write_text("text")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDISTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(XDistillError, match="set XDISTILL_CACHE to a folder to write to"):
        token_stream(Files(folder), BYTES)


def test_large_vocabularies_use_four_bytes(folder):
    (folder / "a.txt").write_text("🙂")
    wide = load_tokenizer("bytes")
    wide = type(wide)(wide.json, wide.end_id, 70_000, 70_001)
    assert token_stream(Files(folder, holdout=0), wide).ids("train").dtype == np.uint32
    assert token_stream(Files(folder, holdout=0), BYTES).ids("train").dtype == np.uint16


def memory(key):
    """VmRSS or VmHWM (its peak) of this process in MB."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure memory")
def test_memory_does_not_grow_with_the_corpus(folder, monkeypatch):
    monkeypatch.setattr(token_cache, "BATCH", 1 << 16)
    (folder / "a.txt").write_text("Some words of a corpus, and a few more.\n" * 50_000)  # 2 MB, 2 M tokens
    BYTES.encode_batch(["warm up"])
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory("VmRSS")
    packed, report = corpus(documents_of(folder), BYTES, "train", 128)
    assert report.characters == 2_000_000 - 1
    assert isinstance(packed.ids, np.memmap)
    assert memory("VmHWM") - before < 50
