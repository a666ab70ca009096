"""Build the embedded speech corpus (spec speech 4.3, `speech-mini`) from Debian's Asterisk prompts, byte for byte.

    pip install av soundfile                                   # libsndfile >= 1.2 writes Opus
    python tools/build_speech_corpus.py [asterisk-core-sounds-en-g722_1.6.1-1_all.deb]

Without an argument the package is fetched with `apt-get download`. Transcripts come from a recogniser (Whisper tiny.en,
`asterisk_en_manifest.tsv`: id, seconds, text, CER against the prompt's nominal wording); `asterisk_en_corrections.tsv`
holds the clips whose words were misheard or written as other words, corrected by hand.
Run tools/align_speech_corpus.py afterwards: it adds phones.tsv and its checksum.
"""

import argparse
import csv
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "domains" / "speech" / "assets" / "asterisk_en"
PACKAGE = "asterisk-core-sounds-en-g722"
VERSION = "1.6.1-1"
SHA256 = "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"
SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison/"
RATE = 16000
SHORTEST, LONGEST = 0.5, 15.0
MAX_CER = 0.1
HELD_OUT, HELD_OUT_SECONDS = 32, (2.0, 8.0)
# 40 kbit/s a second of 16 kHz speech: log-spectral distance to the source .52, against .66 for Vorbis at 48 kbit/s.
OPUS_LEVEL = 0.87
DROPPED = re.compile(r"^(silence/|beep|ascending-|letters/ascii)")


@dataclass
class Clip:
    """One prompt: `pcm` int16 [n] at 16 kHz."""

    id: str
    text: str
    cer: float
    pcm: np.ndarray
    split: str = "train"

    @property
    def seconds(self) -> float:
        return len(self.pcm) / RATE

    @property
    def file(self) -> str:
        return self.id.replace("/", "__") + ".opus"

    @property
    def sentence(self) -> str:
        return " ".join(re.findall(r"[a-z0-9']+", self.text.lower()))


def fetch(folder: Path) -> Path:
    subprocess.run(["apt-get", "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.deb"))


def members(deb: bytes) -> dict[str, bytes]:
    """Regular files of a .deb: an `ar` archive whose member data.tar.* holds the tree."""
    position = 8
    while position < len(deb):
        name = deb[position : position + 16].decode().strip().rstrip("/")
        size = int(deb[position + 48 : position + 58])
        body = deb[position + 60 : position + 60 + size]
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                files = [(m.name, tar.extractfile(m)) for m in tar.getmembers() if m.isfile()]
                return {name.removeprefix("./"): file.read() for name, file in files if file}
        position += 60 + size + size % 2
    raise SystemExit("the package has no data.tar member")


def decode_g722(data: bytes) -> np.ndarray:
    import av

    with av.open(io.BytesIO(data), "r", format="g722") as container:
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def tidy(text: str) -> str:
    """Ellipses of the recogniser mean "breaks off": a full stop; every text ends with a mark."""
    text = re.sub(r"\.{2,}", ".", " ".join(text.split()))
    return text if text[-1] in ".,?!" else text + "."


def select(files: dict[str, bytes]) -> tuple[list[Clip], Counter[str]]:
    fixed = {row["id"]: row["text"] for row in rows(HERE / "asterisk_en_corrections.tsv")}
    clips, dropped, heard = [], Counter[str](), set[str]()
    for row in rows(HERE / "asterisk_en_manifest.tsv"):
        name, text, cer = row["id"], fixed.get(row["id"], row["asr"]), float(row["cer"])
        if DROPPED.match(name) or re.search(r"[\[\](*]", text) or not text.strip():
            dropped["not a plain sentence"] += 1
        elif name not in fixed and not 0 <= cer <= MAX_CER:
            dropped["words uncertain"] += 1
        else:
            pcm = decode_g722(files[SOUNDS + name + ".g722"])
            digest = hashlib.sha256(pcm.tobytes()).hexdigest()
            if not SHORTEST <= len(pcm) / RATE <= LONGEST:
                dropped[f"not {SHORTEST:g}-{LONGEST:g} s"] += 1
            elif digest in heard:
                dropped["same recording twice"] += 1
            else:
                clips.append(Clip(name, tidy(text), cer, pcm))
            heard.add(digest)
    return sorted(clips, key=lambda clip: clip.id), dropped


def hold_out(clips: list[Clip]) -> None:
    """Mark the evaluation clips: the lowest hashes among those of 2-8 s with a surely right text that occurs once."""
    count = Counter(clip.sentence for clip in clips)
    low, high = HELD_OUT_SECONDS
    sure = [c for c in clips if c.cer == 0 and count[c.sentence] == 1 and not re.search("[A-Z]{2}", c.text)]
    fit = [c for c in sure if low <= c.seconds <= high]
    for clip in sorted(fit, key=lambda c: hashlib.sha256(c.id.encode()).hexdigest())[:HELD_OUT]:
        clip.split = "heldout"


def ogg_crc(page: bytes | bytearray) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ CRC_TABLE[value >> 24 ^ byte]
    return value


def crc_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
        table.append(value)
    return table


CRC_TABLE = crc_table()


def fixed_serial(ogg: bytes) -> bytes:
    """The same stream with serial number 0 (RFC 3533): libsndfile draws it at random, changing every checksum."""
    out, position = bytearray(), 0
    while position < len(ogg):
        segments = ogg[position + 26]
        header = position + 27 + segments
        end = header + sum(ogg[position + 27 : header])
        page = bytearray(ogg[position:end])
        page[14:18] = page[22:26] = bytes(4)
        page[22:26] = ogg_crc(page).to_bytes(4, "little")
        out += page
        position = end
    return bytes(out)


def encode(pcm: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, RATE, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)
    return fixed_serial(buffer.getvalue())


LICENSE = f"""# Asterisk English prompts: licence and origin

Voice: Allison Smith (http://www.theivrvoice.com). Financial contributions: Digium, Inc. (http://www.digium.com).
Copyright 2003-2010 Allison Smith. Licence: **Creative Commons Attribution-ShareAlike 3.0 (CC-BY-SA-3.0)**,
https://creativecommons.org/licenses/by-sa/3.0/ . The recordings here stay under that licence; attribute
"Allison Smith / Digium". xdistill's own code is under its own licence.

Source: Debian package `{PACKAGE}` {VERSION}, sha256
`{SHA256}`; upstream
http://downloads.asterisk.org/pub/telephony/asterisk/ . `COPYRIGHT.debian` is the package's own copyright file, with the
full text of the licence.

What we changed: decoded the 16 kHz G.722 files, kept clips of {SHORTEST:g}-{LONGEST:g} s with certain words, dropped
silences, beeps, copies and names of punctuation marks, and re-encoded them to Ogg Opus (16 kHz, mono, about 40 kbit/s).
Nothing was cut, filtered or normalised. The texts are a recogniser's (Whisper tiny.en), partly corrected by hand; they
are not part of the package. `tools/build_speech_corpus.py` rebuilds this folder from the package.

{{minutes:.1f}} minutes, {{clips}} clips, of which {{heldout}} (2-8 s, `split` = heldout) are for evaluation and never
trained on; no training clip has the same sentence.
"""


def write(clips: list[Clip], copyright_file: bytes, output: Path) -> None:
    for stale in output.glob("*.opus"):
        stale.unlink()
    output.mkdir(parents=True, exist_ok=True)
    for clip in clips:
        (output / clip.file).write_bytes(encode(clip.pcm))
    lines = ["id\tfile\tseconds\ttext\tcer\tsplit"]
    lines += [f"{c.id}\t{c.file}\t{c.seconds:.3f}\t{c.text}\t{c.cer:.3f}\t{c.split}" for c in clips]
    (output / "transcripts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (output / "COPYRIGHT.debian").write_bytes(copyright_file)
    facts = {"minutes": sum(c.seconds for c in clips) / 60, "clips": len(clips)}
    heldout = sum(c.split == "heldout" for c in clips)
    text = LICENSE.format(heldout=heldout, **facts)
    (output / "LICENSE.md").write_text(text, encoding="utf-8")
    names = sorted(["transcripts.tsv", "COPYRIGHT.debian", "LICENSE.md", *(c.file for c in clips)])
    sums = [f"{hashlib.sha256((output / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (output / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def report(clips: list[Clip], dropped: Counter[str], output: Path) -> None:
    for split in ("train", "heldout"):
        chosen = [c for c in clips if c.split == split]
        print(f"{split}: {len(chosen)} clips, {sum(c.seconds for c in chosen) / 60:.2f} minutes")
    print("dropped:", ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())))
    print(f"{output}: {sum(p.stat().st_size for p in output.glob('*.opus')) / 1e6:.2f} MB of audio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deb", nargs="?", type=Path, help="the Debian package; fetched with apt-get when absent")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        deb = (arguments.deb or fetch(folder)).read_bytes()
    finally:
        shutil.rmtree(folder)
    if hashlib.sha256(deb).hexdigest() != SHA256:
        raise SystemExit(f"this is not {PACKAGE} {VERSION}: its sha256 differs from {SHA256}")
    files = members(deb)
    clips, dropped = select(files)
    hold_out(clips)
    write(clips, files[f"usr/share/doc/{PACKAGE}/copyright"], arguments.output)
    report(clips, dropped, arguments.output)


if __name__ == "__main__":
    main()
