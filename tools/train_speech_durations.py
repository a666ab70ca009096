"""Train the duration network of the speech domain on the alignment of the embedded corpus (a minute, one thread).

    python tools/train_speech_durations.py [--dev]

Writes `domains/speech/assets/durations.safetensors` with what it measured on held-out clips. `--dev` writes nothing:
it trains on seven eighths of the training clips and measures on the rest, to choose settings by.
"""

import argparse
import json
import math
import time

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xdistill.domains.speech.corpus import Aligned, aligned
from xdistill.domains.speech.durations import SHIPPED, DurationNet, features, predict
from xdistill.domains.speech.phones import PHONES, SILENCE

SEED = 0


def batch(sentences: list[Aligned]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, scalars, mask, log frames), padded to the longest."""
    parts = [features(s.phones) for s in sentences]
    ids = nn.utils.rnn.pad_sequence([p[0] for p in parts], batch_first=True)
    scalars = nn.utils.rnn.pad_sequence([p[1] for p in parts], batch_first=True)
    logs = [torch.tensor(s.durations).float().log() for s in sentences]
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(l), dtype=torch.bool) for l in logs], batch_first=True)
    return ids, scalars, mask, nn.utils.rnn.pad_sequence(logs, batch_first=True)


def train(sentences: list[Aligned], steps: int, rate: float, decay: float) -> DurationNet:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = DurationNet()
        generator = torch.Generator().manual_seed(SEED)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        ids, scalars, mask, target = batch(sentences)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(sentences), (48,), generator=generator)
            here = mask[rows]
            guess = model(ids[rows], scalars[rows], here)
            loss = (guess - target[rows]).abs()[here].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        calibrate(model.eval(), batch(sentences))
    return model


@torch.no_grad()
def calibrate(model: DurationNet, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """The L1 of logs fits medians, which sum to too little: shift until speech without silences has its true length."""
    ids, scalars, mask, target = data
    spoken = mask & (ids[..., 0] != PHONES.index(SILENCE))
    model.out.bias += (target.exp()[spoken].sum() / model(ids, scalars, mask).exp()[spoken].sum()).log()


def measure(sentences: list[Aligned], guesses: list[list[int]]) -> dict[str, float]:
    """Mean absolute error in frames of phones other than silence; ratios of total lengths, without and with silence;
    typical relative error of a clip's length."""
    error = spoken = given = true = 0
    for sentence, guess in zip(sentences, guesses, strict=True):
        rows = zip(sentence.phones.phones, guess, sentence.durations, strict=True)
        for _, ours, theirs in (row for row in rows if row[0] != SILENCE):
            error, spoken, given, true = error + abs(ours - theirs), spoken + 1, given + ours, true + theirs
    whole = sum(map(sum, guesses)) / sum(sum(s.durations) for s in sentences)
    per_clip = [abs(math.log(sum(g) / sum(s.durations))) for s, g in zip(sentences, guesses, strict=True)]
    clip = math.exp(sum(per_clip) / len(per_clip)) - 1
    return {"frames_mae": error / spoken, "speech_ratio": given / true, "total_ratio": whole, "clip_length_error": clip}


def phone_means(sentences: list[Aligned]) -> dict[str, int]:
    pairs = [pair for s in sentences for pair in zip(s.phones.phones, s.durations, strict=True)]
    lengths = {p: [d for name, d in pairs if name == p] for p in {name for name, _ in pairs}}
    return {p: round(sum(d) / len(d)) for p, d in lengths.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    learn, judge = aligned("train"), aligned("heldout")
    if options.dev:
        learn, judge = [s for i, s in enumerate(learn) if i % 8], learn[::8]
    start = time.perf_counter()
    model = train(learn, options.steps, options.rate, options.decay)
    means = phone_means(learn)
    measured = {
        "network": measure(judge, [predict(s.phones, model=model) for s in judge]),
        "network_on_training_clips": measure(learn, [predict(s.phones, model=model) for s in learn]),
        "phone_means": measure(judge, [[means[p] for p in s.phones.phones] for s in judge]),
    }
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {time.perf_counter() - start:.0f} s")
    for name, numbers in measured.items():
        print(name, {key: round(value, 3) for key, value in numbers.items()})
    if not options.dev:
        save_file(model.state_dict(), SHIPPED, {"measured": json.dumps(measured)})


if __name__ == "__main__":
    main()
