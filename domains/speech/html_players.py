"""Sentences side by side in an HTML report: the recording, then each source's sample, to hear and to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from xdistill.domains.speech.codec import sound
from xdistill.domains.speech.judges import RATE, heard
from xdistill.domains.speech.metrics import RecordingOf, recording_of
from xdistill.domains.speech.picture import draw_mel
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.vocoder import Vocoder
from xdistill.evaluation import Row
from xdistill.html_figure import axes, chip, colour, figures
from xdistill.html_report import REAL, Panel

SENTENCES = 6  # of a report
SOUND = 6_000_000  # bytes of sound in a report


def panels(
    rows: Sequence[Row], vocoder: Vocoder, sentences: int = SENTENCES, recording_of: RecordingOf = recording_of
) -> list[Panel]:
    """One panel: for each of the first sentences the recording and every source's sample, each with a player.

    Browsers make their players reachable by keyboard. Sentences whose sound would make the file too large are left out.
    """
    parts: list[str] = []
    budget = SOUND
    for i in range(min((row.n for row in rows), default=0)):
        part = _sentence(i, rows, vocoder, recording_of)
        budget -= len(part)
        if len(parts) == sentences or budget < 0:
            break
        parts.append(part)
    if not parts:
        return []
    note = (
        f"Sound by {escape(vocoder.name)}, the recordings through it too, so that only mels differ. "
        "16-bit PCM, 16 kHz, as the judges hear it. Brightness is loudness, one scale for all pictures."
    )
    return [Panel("Listen", f'{"".join(parts)}<p class="note">{note}</p>')]


def _sentence(i: int, rows: Sequence[Row], vocoder: Vocoder, recording_of: RecordingOf) -> str:
    sources = [(row.name, colour(k), row.samples[i]) for k, row in enumerate(rows)]
    recording = recording_of(sources[0][2])
    said = escape(sources[0][2].text or f"sample {i}")
    if recording is not None:
        sources.insert(0, (REAL, colour(None), recording))
    return f"<h3>{i + 1}. {said}</h3>{figures([_player(*source, i, vocoder) for source in sources])}"


def _player(name: str, tint: str, sample: Spoken, i: int, vocoder: Vocoder) -> str:
    label = escape(f"{name}, sentence {i + 1}")
    wave = base64.b64encode(sound(heard(sample, vocoder), RATE, "wav", sample.text)).decode()
    return (
        f'<figure><img alt="mel spectrogram of {label}" src="data:image/png;base64,{_picture(sample)}">'
        f'<audio controls preload="metadata" aria-label="{label}" src="data:audio/wav;base64,{wave}"></audio>'
        f"<figcaption>{chip(tint)}{escape(name)} <i>{sample.seconds:.1f} s</i></figcaption></figure>"
    )


def _picture(sample: Spoken) -> str:
    """A PNG of the mel, base64: bitmaps of so many cells are smaller than vector graphics."""
    file = io.BytesIO()
    with axes(3.2, 1.2) as (fig, ax):
        draw_mel(ax, sample)
        ax.set_axis_off()
        fig.savefig(file, format="png", dpi=100, transparent=True)
    return base64.b64encode(file.getvalue()).decode()
