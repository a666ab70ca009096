"""Packed sequences: how they are wrapped and cut, and that their order is a function of the seed alone."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
import torch

from xdistill.domains.text.corpus import split
from xdistill.domains.text.data import corpus, documents_of
from xdistill.domains.text.packing import Packed, PackedSource
from xdistill.domains.text.tokenizer_files import load_tokenizer

BODY = 5


def packed(n=43, **options):
    return Packed(np.arange(100, 100 + n, dtype=np.uint16), BODY + 2, 0, **options)


def chunks(source, batches, rank=0, world=1):
    """The first id of the body of each sequence."""
    return [int(i) for b in range(batches) for i in source.batch(b, rank, world).like.ids[:, 1]]


def test_a_sequence_is_a_chunk_between_ends():
    assert packed().sequence(0).tolist() == [0, 100, 101, 102, 103, 104, 0]
    assert packed().sequence(2, offset=3).tolist() == [0, 113, 114, 115, 116, 117, 0]
    assert packed(begin_id=7).sequence(0).tolist() == [7, 100, 101, 102, 103, 104, 0]


def test_without_wrapping_a_sequence_is_all_text():
    bare = packed(wrap=False)
    assert bare.body == bare.length == 7
    assert bare.sequence(1).tolist() == list(range(107, 114))


@pytest.mark.parametrize("n", [0, 4, 5, 8, 9, 43, 44])
def test_every_offset_offers_that_many_whole_sequences(n):
    p = packed(n)
    for offset in range(BODY if n >= BODY else 0):
        for chunk in range(len(p)):
            assert len(p.sequence(chunk, offset)) == p.length
    assert len(p) == {0: 0, 4: 0, 5: 1, 8: 1, 9: 1, 43: 7, 44: 8}[n]


def test_an_epoch_has_each_chunk_once_in_a_new_order_at_a_new_offset():
    source = PackedSource(packed(), seed=3, batch_size=1)
    size = len(source.packed)
    first, second = chunks(source, size), chunks(source, 2 * size)[size:]
    assert sorted(first) == [100 + BODY * k for k in range(size)]
    assert len({(i - 100) % BODY for i in second}) == 1
    assert len(set(second)) == size
    assert [sorted(first).index(i) for i in first] != [sorted(second).index(i) for i in second]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 30])
def test_the_order_is_a_permutation(size):
    source = PackedSource(packed(size * BODY + BODY - 1), seed=1, batch_size=1)
    assert len(source.packed) == size
    for epoch in range(5):
        assert sorted(source.order(epoch, at) for at in range(size)) == list(range(size))


def test_ranks_are_disjoint_and_together_they_are_one_epoch():
    source = PackedSource(packed(5 * 24 + 4), seed=0, batch_size=3)
    parts = [chunks(source, 2, rank, world=4) for rank in range(4)]
    assert len(source.packed) == 24
    assert sorted(i for part in parts for i in part) == [100 + BODY * k for k in range(24)]
    assert not torch.equal(source.batch(0, 0, 4).like.ids, source.batch(0, 1, 4).like.ids)


def test_a_batch_is_a_function_of_the_seed_and_its_index():
    a, b, other = (PackedSource(packed(5 * 24 + 4), seed, 4) for seed in (5, 5, 6))
    later = a.batch(17, 0, 1)
    assert torch.equal(later.like.ids, b.batch(17, 0, 1).like.ids)  # without the batches before it
    assert [chunks(a, 6)] != [chunks(other, 6)]
    assert later.real
    assert later.like.mask.all()


def test_the_batches_that_the_shipped_teacher_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDISTILL_CACHE", str(tmp_path))
    t = load_tokenizer("shipped")
    stream, report = corpus(documents_of(None), t, "train", 128)
    held_out, _ = corpus(documents_of(None), t, "validation", 128)
    assert (report.documents, report.held_out, report.counts) == (6, 1, {})
    assert held_out.ids[:-1].tolist() == t.encode(split("validation")[0])
    digest = sha256(stream.ids.tobytes()).hexdigest()
    assert digest == "194a23943b84cd5dc8d959e076b4eeda7b23d89d511e1090434faee83d993339"
    source = PackedSource(stream, seed=0, batch_size=16)
    seen = sha256()
    for index in (0, 1, 598, 599, 5000, 20000):
        seen.update(source.batch(index, 0, 1).like.ids.numpy().tobytes())
    assert seen.hexdigest() == "32e346a1ae64c5c0b15d23d6499ca1e942ac5fb0af036371ea36e8dfc11fbd57"
