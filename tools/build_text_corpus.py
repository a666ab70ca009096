"""Rebuild the embedded corpus and its tokenizer: needs apt (or the package's file) and `pip install rdata`.

python tools/build_text_corpus.py [--deb FILE] [--out DIR]    # writes austen_clean.txt.xz and austen_bpe1024.json

The novels are in Debian's r-cran-janeaustenr as an R lazy-load database: an index of offsets, and for each object a
4-byte length and a zlib stream of R's serialisation. No R is needed. `--out` is a folder to compare with
domains/text/assets; nothing is written when the text is not the known one.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import re
import subprocess
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from xdistill.domains.text.corpus import ASSETS, AUSTEN, split
from xdistill.domains.text.tokenizer_files import SHIPPED
from xdistill.domains.text.tokenizers import train_bpe
from xdistill.errors import XDistillError

PACKAGE = "r-cran-janeaustenr=1.0.0-1"
DEB_SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
TEXT_SHA256 = "7d373b530e9c3b3d72f0cdd036d21f2edd0c18b06bede9c05d936184535045cf"
XZ_SHA256 = "20eb3911efc8f140252fb771c9825dfe0b431e2f836fee63717e6d4a02d57395"
DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata"
HEADINGS = re.compile(
    r"[Cc](hapter|HAPTER) [IVXLC\d]+\.?|VOLUME [IVX]+|FINIS|Finis|THE END|by|Jane Austen|By Jane Austen|\(18\d\d\)"
)


def download(folder: Path) -> Path:
    """The package's file from the Debian mirror that apt knows."""
    subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, check=True)
    return next(folder.glob("*.deb"))


def books(deb: Path) -> Iterator[list[str]]:
    """The lines of each novel, in the order of the package."""
    import rdata

    def parse(data: bytes) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the type of the file is a guess
            return rdata.conversion.convert(rdata.parser.parse_data(data))

    if (found := sha256(deb.read_bytes()).hexdigest()) != DEB_SHA256:
        raise XDistillError(f"{deb} has sha256 {found}, expected {DEB_SHA256} ({PACKAGE})")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "--extract", str(deb), folder], check=True)
        base = Path(folder) / DATA
        index = parse(gzip.decompress(base.with_suffix(".rdx").read_bytes()))
        data = base.with_suffix(".rdb").read_bytes()
    for start, size in index["variables"].values():
        yield [str(line) for line in parse(zlib.decompress(data[start + 4 : start + size]))]


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs re-flowed to one line each, headings left out."""
    held: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            held += line.split()
        elif held:
            text, held = " ".join(held), []
            if not HEADINGS.fullmatch(text):
                yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deb", type=Path, help="the package's file, if already there")
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(p for book in books(args.deb or download(Path(folder))) for p in paragraphs(book)).encode()
    if (found := sha256(text).hexdigest()) != TEXT_SHA256:
        raise XDistillError(f"the text has sha256 {found}, expected {TEXT_SHA256}: nothing written")
    packed = lzma.compress(text, preset=9)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / AUSTEN.name).write_bytes(packed)
    same = sha256(packed).hexdigest() == XZ_SHA256
    print(f"{AUSTEN.name}: {len(packed)} bytes, {'byte-identical' if same else 'the same text, compressed otherwise'}")
    bpe = train_bpe(split("train"), 1024).json.encode()
    (args.out / SHIPPED.name).write_bytes(bpe)
    print(f"{SHIPPED.name}: {len(bpe)} bytes, sha256 {sha256(bpe).hexdigest()}")


if __name__ == "__main__":
    main()
