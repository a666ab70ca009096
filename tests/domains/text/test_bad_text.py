"""Bad input of the text domain as a user types it: one line on stderr that names the fix, nothing is executed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from text_student import SIZES, write_checkpoint

from xdistill.cli import main
from xdistill.domains.text.network import TextConfig, TextDiT

FIT = "fit domain=text eval=none logger=none train.steps=1 out={d}/new "
OWN = FIT + "objective=mdlm data.path={d}/"
FILE = FIT + "teacher=file teacher.weights={d}/"
GENERATE = "generate domain=text ckpt={student} out={d}/new "
EVALUATE = "evaluate domain=text teacher=ancestral@2 num=2 domain.judge="


class Payload:
    """Executed when unpickled blindly: writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.trace, "executed")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("bad") / "student")


def text(content: bytes) -> Callable[[Path], object]:
    return lambda d: (d / "a.txt").write_bytes(content)


def lightning(d: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Payload(d / "trace")}, d / "a.ckpt")


def maskless(d: Path) -> None:
    net = TextDiT(TextConfig(1023, **SIZES))  # type: ignore[arg-type]
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, d / "a.safetensors")


def nothing(d: Path) -> None:
    """The folder as it is."""


@pytest.mark.parametrize(
    ("command", "prepare", "code", "says"),
    [
        (FIT + "domain.tokenizer=bytes", nothing, 1, ("mask is id 1023", "domain.tokenizer")),
        (FIT + "domain.tokenizer=shiped", nothing, 2, ("tokenizer=shiped", "shipped, bytes, gpt2")),
        (FILE + "a.safetensors", maskless, 1, ("ids 0 to 1022, no mask", "domain.tokenizer")),
        (FILE + "a.safetensors", nothing, 1, ("a.safetensors does not exist",)),
        (FILE + "a.ckpt", lightning, 1, ("a.ckpt was refused", "more than tensors")),
        (FILE + "a.ckpt", lambda d: (d / "a.ckpt").write_bytes(pickle.dumps(Payload(d / "trace"))), 1, ("a.ckpt",)),
        (FIT + "objective.steps=0", nothing, 2, ("objective.steps=0", "at least 1")),
        (FIT + "objective.steps=129", nothing, 2, ("objective.steps=129", "128 tokens")),
        (FIT + "sampler.steps=129", nothing, 2, ("sampler.steps=129", "128 tokens")),
        (OWN, text("caf\xe9 ".encode("latin-1") * 300), 1, ("not UTF-8", "a.txt (byte 3)", "iconv")),
        (OWN, text(b"\n \n"), 1, ("no usable document", "empty document")),
        (OWN, nothing, 1, ("no text file", ".jsonl")),
        (OWN, text(b"Too short."), 1, ("less than one context", "lower the context")),
        (OWN + "none", nothing, 1, ("none is no file or folder",)),
        (GENERATE + f"prompt={'word_' * 200}", nothing, 2, ("of 128 tokens", "shorten it")),
        (GENERATE + "prompts={d}/a.txt", text(b"It is \xff\n"), 2, ("a.txt", "not UTF-8")),
        (GENERATE + "steps=-1", nothing, 2, ("steps=-1", "at least 1")),
        (GENERATE + "steps=129", nothing, 2, ("steps=129", "128 tokens")),
        (EVALUATE + "smollm3", nothing, 2, ("unknown judge 'smollm3'", "'smollm2'")),
        (EVALUATE + "{d}/none", nothing, 2, ("none",)),
    ],
)
def test_bad_text(
    command: str,
    prepare: Callable[[Path], object],
    code: int,
    says: tuple[str, ...],
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main(command.format(d=tmp_path, student=student).split()) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("xdistill: error: ")
    assert "bug?" not in lines[0]
    assert [part for part in says if part not in lines[0]] == [], lines[0]
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "new" / "checkpoints").exists()
