"""Text from the generation engine: prompts, files, streams; its bits and its messages."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from text_student import write_checkpoint

from xdistill.cli import main
from xdistill.cli.student import options
from xdistill.domains.text import TextDomain
from xdistill.domains.text.passage import Passage, entropy, passage, repetition, similarity
from xdistill.domains.text.prompts import Ask, read_prompts
from xdistill.errors import UsageError, XDistillError
from xdistill.generation import Engine, Job, generate
from xdistill.generation.lines import collect, stream
from xdistill.generation.maker import Artist
from xdistill.student import Loaded, load_student

LENGTH = 24
LEAST = 3.1  # nats of 24 tokens: some of the samples have less


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("text") / "student")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Loaded:
    return load_student(checkpoint)


@pytest.fixture(scope="module")
def domain(loaded: Loaded) -> TextDomain:
    assert isinstance(loaded.domain, TextDomain)
    return loaded.domain


def drawn(job: Job) -> dict[int, Passage]:
    artist = Artist(job)
    try:
        made = [artist.draw(job.plan[n]).designs for n in range(job.plan.shards)]
    finally:
        artist.close()
    return {i: design.sample for part in made for i, design in part.items()}


def job(loaded: Loaded, num: int = 10, **request: object) -> Job:
    return Job(loaded, num, batch=32, options={"steps": 4}, request={"length": LENGTH, **request})


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "timings.jsonl"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_a_prompt_follows_end_and_stays(loaded: Loaded, domain: TextDomain) -> None:
    tokens = tuple(domain.tokenizer.encode("It is a truth"))
    for p in drawn(job(loaded, prompt="It is a truth")).values():
        assert p.ids[: len(tokens) + 1] == (domain.tokenizer.end_id, *tokens)
        assert p.given == ((0, len(tokens) + 1),)
        assert p.prompt == "It is a truth"
        assert p.text.startswith(p.prompt)
        assert p.text == p.prompt + p.filled[0] or "\ufffd" in p.text
        assert len(p) == LENGTH
        assert domain.process.mask_id not in p.ids


def test_a_prompt_follows_what_begins_sequences(domain: TextDomain) -> None:
    other = replace(domain.tokenizer, begin=5)
    assert Ask("It is", suffix=" end").layout(12, other)[0] == 5
    assert Ask("It is", suffix=" end").layout(12, other)[-1] == other.end_id != 5


def test_suffix_and_gaps(loaded: Loaded, domain: TextDomain) -> None:
    p = drawn(job(loaded, 1, prompt="It is", suffix=" the end."))[0]
    assert p.text.startswith("It is")
    assert p.text.endswith(" the end.")
    assert p.ids[-1] == domain.tokenizer.end_id
    template = "It is a truth <gap:5> acknowledged, that a <gap:3> man"
    p = drawn(job(loaded, 1, infill=template, length=64))[0]
    assert [b - a for a, b in p.drawn] == [5, 3]
    assert len(p.filled) == 2
    head, middle, tail = "It is a truth", " acknowledged, that a", " man"
    assert p.text.startswith(head)
    assert middle in p.text
    assert p.text.endswith(tail)
    assert domain.design_metrics(p)["tokens"] == 8


def test_without_a_prompt_nothing_is_given(domain: TextDomain) -> None:
    like = domain.plan(range(2), 0).like
    assert like.given is None
    assert like.ids.shape == (2, 128)
    assert bool((like.ids == domain.process.mask_id).all())


def test_bits_do_not_depend_on_the_batch(loaded: Loaded) -> None:
    """Few steps and many, so that also calls that reveal a single token of the whole batch are seen."""
    for steps in (2, 16):
        base = replace(job(loaded, 7, prompt="It is"), options={"steps": steps})
        whole = drawn(base)
        for other in (replace(base, batch=2, num=3), replace(base, batch=5, num=6)):
            found = drawn(other)
            assert {i: whole[i] for i in found} == found
        assert drawn(replace(base, num=2, seed=1))[0] != whole[0]


def test_folder_does_not_depend_on_processes_and_resumes(loaded: Loaded, tmp_path: Path) -> None:
    base = replace(job(loaded, 20, prompt="It is"), batch=4, shard=4)
    generate(base, tmp_path / "one")
    generate(base, tmp_path / "two", Engine(workers=2))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    generate(base, tmp_path / "three")
    (tmp_path / "three" / "shards" / "shard_000001.jsonl").unlink()
    again = generate(base, tmp_path / "three")
    assert again.made == 4
    assert files(tmp_path / "one") == files(tmp_path / "three")


def test_manifest_and_lines(loaded: Loaded, domain: TextDomain, tmp_path: Path) -> None:
    quality = {"quality": {"entropy": LEAST}}
    base = replace(job(loaded, 20), batch=4, shard=8, filters=("quality",), filter_options=quality)
    outcome = generate(base, tmp_path)
    rows = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    passed = [r["index"] for r in rows if r["passed"]]
    assert 0 < len(passed) < 20
    assert all((r["entropy"] >= LEAST) == r["passed"] for r in rows)
    assert {"length", "tokens", "entropy", "repetition"} <= set(rows[0])
    lines = collect(tmp_path, outcome.folder.rows(), domain).read_bytes()
    found = domain.unpack(lines)
    assert list(found) == passed
    assert found == {i: p for i, p in drawn(base).items() if i in passed}
    assert b"".join(stream(base, "cpu")) == lines


def test_files_come_back(domain: TextDomain, tmp_path: Path) -> None:
    p = passage([0, 300, 301, 302], [(0, 2)], domain.tokenizer)
    assert pickle.loads(pickle.dumps(p)) == p
    assert domain.load(domain.write(p, tmp_path / "a")) == p
    (tmp_path / "b.txt").write_text("It is a truth\n")
    (tmp_path / "c.jsonl").write_text('{"text":"one"}\n\n"two"\n')
    assert [s.text for s in domain.read(tmp_path)] == [p.text, "It is a truth", "one", "two"]
    packed = domain.pack([p, p], [3, 7])
    assert domain.unpack(packed) == {3: p, 7: p}
    for broken in (packed[:-1], packed[:40], b"\xff\n", packed.replace(b"300", b"999999"), b'{"index":1}\n'):
        with pytest.raises(XDistillError):
            domain.unpack(broken)


def test_numbers_of_a_passage() -> None:
    assert entropy([1, 2, 3, 4]) == pytest.approx(1.3863, abs=1e-4)
    assert entropy([5] * 9) == 0
    assert entropy([]) == 0
    assert repetition(list(range(20))) == 0
    assert repetition([1, 2] * 10) == pytest.approx(1 - 2 / 17)
    a, b = Passage((1, 2, 3, 4, 5), ""), Passage((1, 2, 3, 4, 6), "")
    assert similarity(a, a) == 1
    assert similarity(a, b) == similarity(b, a) == pytest.approx(2 / 4)


PROMPTS = 'It is\r\n{"prompt": "Emma", "suffix": " the end."}\n\n{"infill": "a <gap:4> man"}\n'


def test_prompt_files(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(PROMPTS.encode())
    prompts = read_prompts(str(path))
    assert [a.prompt or a.infill for a in prompts.asks] == ["It is", "Emma", "a <gap:4> man"]
    found = drawn(job(loaded, 5, prompts=prompts))
    assert [found[i].prompt for i in range(5)] == ["It is", "Emma", "a", "It is", "Emma"]
    assert found[0] != found[3]
    assert job(loaded, prompts=prompts).identity()["prompts"] == prompts.identity
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(PROMPTS.encode())))
    assert [a.prompt for a in read_prompts("-").asks] == [a.prompt for a in prompts.asks]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"It is \xff\n", "not UTF-8"),
        (b"\n \n", "has no line"),
        (b'a\n{"prompt": 3}\n', "line 2"),
        (b'{"prompt": "a", "infill": "b"}', "template and a prompt"),
        (b"{oh\n", "no JSON object"),
        (b'{"text": "a"}', 'none of "prompt"'),
    ],
)
def test_bad_prompt_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "word " * 200}, "takes 203 of 128 tokens"),
        ({"infill": "no hole"}, "has no gap"),
        ({"infill": "a <gap> b"}, "number of tokens"),
        ({"infill": "a <gap:999999999> b"}, "number of tokens"),
        ({"infill": "a <gap:4>"}, "ends with a gap"),
        ({"length": 129}, "trained on 128 tokens"),
        ({"length": "x"}, "number of tokens"),
        ({"prompts": "/nowhere"}, "No such file"),
        ({"prompt": "a", "prompts": "b"}, "choose one"),
    ],
)
def test_bad_requests(domain: TextDomain, request_: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        domain.plan([0], 0, **request_)


def test_bad_sampler_options(loaded: Loaded) -> None:
    for given, message in (
        ({"steps": 129}, "128 tokens"),
        ({"steps": 30, "request": {"length": 24}}, "24 tokens"),
        ({"steps": 4, "changes": {"noise_scale": 1.0}}, "takes steps=, temperature="),
        ({"steps": 4, "changes": {"top_p": 0.0}}, "above 0"),
        ({"steps": 4, "changes": {"method": "confidenc"}}, "did you mean 'confidence'"),
    ):
        with pytest.raises(UsageError, match=message):
            options(loaded, **given)  # type: ignore[arg-type]
    assert options(loaded, 4, {"temperature": 0.5})["temperature"] == 0.5


def test_command_line(checkpoint: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    base = ["generate", "domain=text", f"ckpt={checkpoint}", "steps=4", "length=24"]
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    path.write_bytes(PROMPTS.encode())
    assert main([*base, f"prompts={path}", f"out={out}"]) == 0
    lines = (out / "samples.jsonl").read_bytes()
    assert [json.loads(row)["prompt"] for row in lines.splitlines()] == ["It is", "Emma", "a"]
    capfdbinary.readouterr()
    assert main([*base, f"prompts={path}", "out=-"]) == 0
    assert capfdbinary.readouterr().out == lines
    assert main([*base, f"prompts={path}", "out=-", "format=txt", "num=1"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"It is")
    assert main([*base, "prompt=1e5", "stream=true"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"1e5")
    path.write_bytes(b"another\n" * 3)
    assert main([*base, f"prompts={path}", f"out={out}"]) == 2
    assert b"another request (prompts sha256:" in capfdbinary.readouterr().err
    assert main([*base, "temperature=-1"]) == 2
    assert b"temperature=-1: expected at least 0" in capfdbinary.readouterr().err
    assert main(["generate", "domain=toy", "out=-", f"ckpt={checkpoint}"]) == 1


def test_evaluate_reads_the_standard_input_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"1e5\nIt is\n")))
    table = tmp_path / "table.json"
    args = ["evaluate", "domain=text", f"ckpt={checkpoint},{checkpoint}", "steps=2", "length=24", "num=3", "prompts=-"]
    assert main([*args, f"json={table}"]) == 0, capsys.readouterr().err
    first, second = json.loads(table.read_text())["rows"]
    assert first["metrics"] == second["metrics"]


def test_interrupted_lines_are_not_continued(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("xdistill.cli.generate.run", stop)
    for keys, again in ((["out=-"], False), (["stream=true"], False), (["stream=True"], False), (["out=d"], True)):
        assert main(["generate", "domain=text", *keys]) == 130
        err = capsys.readouterr().err
        assert ("continue with: xdistill generate domain=text" in err) == again
        assert "Traceback" not in err


def test_a_shell_pipe_that_closes_early(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xdistill", "generate", "domain=text", f"ckpt={checkpoint}", "steps=1", "num=2000"]
    command += ["length=8", "out=-", "batch=8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["index"] == 0
        child.stdout.close()
        assert child.wait(120) == 0
        assert child.stderr is not None
        assert child.stderr.read() == b""
