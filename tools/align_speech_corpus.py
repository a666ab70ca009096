"""Write the phones and durations of the embedded speech corpus: `domains/speech/assets/asterisk_en/phones.tsv`.

pip install 'xdistill[align]' && python tools/align_speech_corpus.py
"""

import hashlib
from collections import Counter

from xdistill.domains.speech import alignment, corpus
from xdistill.domains.speech.mel import MelSpec
from xdistill.errors import XDistillError


def line(clip: corpus.Clip) -> str:
    spoken, durations = alignment.align_to_mel(clip.audio(), corpus.RATE, clip.text, MelSpec("vocos"))
    columns = [spoken.phones, durations, spoken.words, [mark or "-" for mark in spoken.marks]]
    return "\t".join([clip.id, str(sum(durations)), *(" ".join(map(str, column)) for column in columns)])


def main() -> None:
    lines, skipped = ["id\tframes\tphones\tdurations\twords\tmarks"], {}
    for clip in corpus.clips():
        try:
            lines.append(line(clip))
        except XDistillError as error:
            skipped[clip.id] = (clip.split, str(error))
    path = corpus.FOLDER / "phones.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sums = corpus.FOLDER / "SHA256SUMS"
    kept = [row for row in sums.read_text().splitlines() if not row.endswith(" phones.tsv")]
    kept.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  phones.tsv")
    sums.write_text("\n".join(sorted(kept, key=lambda row: row.split("  ")[1])) + "\n")
    counts = Counter(clip.split for clip in corpus.clips() if clip.id not in skipped)
    print(dict(counts), "aligned;", len(skipped), "skipped")
    for name, (split, reason) in skipped.items():
        print(f"  {name} ({split}): {reason}")


if __name__ == "__main__":
    main()
