"""Sequences for a CA trace: autoregressive sampling of CA-only ProteinMPNN in a random order, many at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xdistill.domains.protein.mpnn_network import CaMPNN

ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
UNKNOWN = ALPHABET.index("X")  # a letter of the network, never sampled


@torch.inference_mode()
def sample_letters(
    net: CaMPNN, x: Tensor, sequences: int, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample `sequences` sequences of the trace x [n, 3] (Angstrom, centred), each in its own random order.

    Gumbel-max sampling: the draws come from `generator` alone. Encoder and edge products are shared by all
    sequences, so that eight cost little more than one.

    Returns:
        letters [S, n] (indices into ALPHABET), their log-probabilities [S, n] at temperature 1 given the letters
        sampled before them, and the orders [S, n].
    """
    encoded, e, graph = net.encode(x[None], torch.ones(1, len(x), dtype=torch.bool, device=x.device))
    h, neighbours = encoded[0], graph.flat[0]
    n, k = neighbours.shape
    order = torch.rand(sequences, n, generator=generator, device=generator.device).argsort(1).to(x.device)
    noise = torch.empty(sequences, n, UNKNOWN, device=generator.device).exponential_(generator=generator)
    noise = -noise.log().to(x.device)
    parts = [layer.parts() for layer in net.decoder_layers]
    edges = [F.linear(e[0], edge) for _, edge, _, _ in parts]
    typed = [F.linear(net.W_s.weight, letter) for _, _, letter, _ in parts]
    known = [F.linear(h, other).repeat(sequences, 1, 1) for *_, other in parts]  # what node j tells its neighbours
    letters = torch.full((sequences, n), UNKNOWN, device=x.device)
    log_prob = x.new_zeros(sequences, n)
    rows = torch.arange(sequences, device=x.device)
    for t, i in enumerate(order.T):
        u, inputs = h[i], []
        for layer, (own, *_), edge, told in zip(net.decoder_layers, parts, edges, known, strict=True):
            inputs.append(u)
            a = edge[i] + told[rows[:, None], neighbours[i]] + F.linear(u, own, layer.W1.bias)[:, None]
            u = layer.update(u, F.gelu(layer.W2(F.gelu(a))).sum(1), u.new_tensor(k))
        logits = net.W_out(u)
        letter = (logits[:, :UNKNOWN] / temperature + noise[:, t]).argmax(-1)
        letters[rows, i] = letter
        log_prob[rows, i] = logits.log_softmax(-1)[rows, letter]
        for told, table, (*_, other), v in zip(known, typed, parts, inputs, strict=True):
            told[rows, i] = F.linear(v, other) + table[letter]
    return letters, log_prob, order


def decode(letters: Tensor) -> list[str]:
    """Letters [S, n] -> one-letter sequences."""
    return ["".join(ALPHABET[i] for i in row) for row in letters.tolist()]
