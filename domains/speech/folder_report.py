"""What was kept of a user's recordings, what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from xdistill.data_report import SkipReport


@dataclass
class FolderReport(SkipReport):
    """Counts of a folder and of what was left out; text: how networks are told what is said."""

    recordings: int = 0
    seconds: float = 0.0
    held_out: int = 0
    text: str = ""

    kept = ("recordings", "seconds", "held_out", "text")
    hints = MappingProxyType(
        {
            "no transcript": "write its words into metadata.csv, a .jsonl or a .txt of the same name",
            "audio not found": "correct the path or id of the transcript",
            "not audio": "convert to WAV or FLAC (ffmpeg)",
            "empty": "record again: the file has no samples",
            "silent": "check the recording: its level is below -80 dB",
            "clipped": "record at a lower level: over 0.1 % of the samples are at full scale",
            "too short": "join it with another sentence",
            "too long": "cut it into sentences",
            "empty text": "write what is said",
            "unknown characters": "spell the text with characters of the network's vocabulary",
            "unknown words": "spell the text with words of the English dictionary",
            "text does not fit": "check that the transcript is what the recording says",
            "bad line": 'give id|text in metadata.csv, {"audio": ..., "text": ...} in .jsonl',
            "not UTF-8": "convert to UTF-8 (iconv -t utf-8)",
            "listed twice": "keep one transcript a recording",
        }
    )

    @property
    def title(self) -> str:
        title = f"{self.recordings:,} recordings ({self.seconds / 60:,.1f} minutes) kept, {self.held_out:,} held out"
        return f"{title}; {self.text}" if self.text else title

    def nothing(self, name: str) -> str:
        """The message when no recording is left."""
        if not self.counts:
            return f"no usable recording in {name}: its list of transcripts is empty: give id|text lines"
        return f"no usable recording in {name}: {self.why(self.counts.most_common(1)[0][0])}"
