"""Copy the CMU pronouncing dictionary (BSD) of the pocketsphinx wheel into the assets, compressed.

pip install pocketsphinx==5.1.1 && python tools/vendor_cmudict.py
"""

import hashlib
import lzma
from importlib.metadata import distribution
from pathlib import Path

import pocketsphinx

OUTPUT = Path(__file__).resolve().parent.parent / "domains" / "speech" / "assets" / "lexicon"
SHA256 = "20b5c293e1f311fb375fe067e500ec5636f4fc7af5594967263696def9b23bfe"


def main() -> None:
    raw = (Path(pocketsphinx.__file__).parent / "model" / "en-us" / "cmudict-en-us.dict").read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise SystemExit("this pocketsphinx has another dictionary; install pocketsphinx==5.1.1")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "cmudict.dict.xz").write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    licence = next(f for f in distribution("pocketsphinx").files or [] if f.name == "LICENSE")
    text = Path(str(licence.locate())).read_text(encoding="utf-8").split("\n\nWebRTC VAD code")[0]
    head = "cmudict.dict.xz: the dictionary of pocketsphinx 5.1.1 (model/en-us/cmudict-en-us.dict), unchanged.\n\n"
    (OUTPUT / "LICENSE.cmudict").write_text(head + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
