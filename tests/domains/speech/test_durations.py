"""Predicted durations: better than the phone's mean, scaled by speed, the same every time and for every padding."""

import numpy as np
import pytest
import torch

from xdistill.domains.speech import corpus, durations, lexicon
from xdistill.domains.speech.phones import SILENCE, Phones
from xdistill.errors import UsageError, XDistillError


def test_the_shipped_network_beats_the_phone_mean_on_held_out_clips() -> None:
    heldout, train = corpus.aligned("heldout"), corpus.aligned("train")
    lengths: dict[str, list[int]] = {}
    for sentence in train:
        for phone, frames in zip(sentence.phones.phones, sentence.durations, strict=True):
            lengths.setdefault(phone, []).append(frames)
    errors, baseline, total, true = [], [], 0, 0
    for sentence in heldout:
        guess = durations.predict(sentence.phones)
        for phone, ours, theirs in zip(sentence.phones.phones, guess, sentence.durations, strict=True):
            if phone != SILENCE:
                errors.append(abs(ours - theirs))
                baseline.append(abs(np.mean(lengths[phone]) - theirs))
                total, true = total + ours, true + theirs
    assert np.mean(errors) < 0.7 * np.mean(baseline)
    assert 0.95 < total / true < 1.05
    assert np.mean(errors) == pytest.approx(durations.facts()["network"]["frames_mae"], rel=0.02)


def test_speed_divides_the_length() -> None:
    spoken = lexicon.phones("Please enter your password, followed by the pound key.")
    lengths = {speed: sum(durations.predict(spoken, speed)) for speed in (0.5, 1.0, 2.0)}
    assert lengths[0.5] == pytest.approx(2 * lengths[1.0], abs=2)
    assert lengths[2.0] == pytest.approx(lengths[1.0] / 2, abs=2)
    assert durations.predict(spoken) == durations.predict(spoken)
    assert min(durations.predict(spoken, 4.0)) >= 1
    for speed in (0.0, -1.0, 9.0, float("nan")):
        with pytest.raises(UsageError, match="speed="):
            durations.predict(spoken, speed)


def test_the_place_in_the_sentence_matters() -> None:
    spoken = lexicon.phones("pound pound pound.")
    frames = durations.predict(spoken)
    final = [sum(f for f, w in zip(frames, spoken.words, strict=True) if w == word) for word in range(3)]
    assert final[2] > 1.15 * final[1]


def test_padding_changes_nothing() -> None:
    ids, scalars = durations.features(lexicon.phones("Hello world."))
    count = len(ids)
    model = durations.shipped()
    alone = model(ids[None], scalars[None], torch.ones(1, count, dtype=torch.bool))
    wide = torch.nn.functional.pad
    mask = torch.arange(count + 7)[None] < count
    padded = model(wide(ids, (0, 0, 0, 7), value=1)[None], wide(scalars, (0, 0, 0, 7), value=3.0)[None], mask)
    assert torch.allclose(padded[:, :count], alone, atol=1e-5)
    assert (padded[:, count:] == 0).all()


def test_rounding_keeps_the_running_sum() -> None:
    assert durations.rounded([1.5] * 6) == [2, 1, 2, 1, 2, 1]
    assert durations.rounded([0.1, 0.1, 5.0]) == [1, 1, 3]


def test_no_phones_is_an_error() -> None:
    with pytest.raises(XDistillError, match="no phones"):
        durations.predict(Phones((), (), ()))
