"""Fetch the 3Dmol.js (BSD-3-Clause) that HTML reports inline, with its licence, and check it: needs `npm`.

python tools/vendor_3dmol.py            # writes xdistill/assets/3Dmol-min.js and 3Dmol.LICENSE.txt
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

from xdistill.errors import XDistillError
from xdistill.html_report import ASSETS, VIEWER_SHA256, VIEWER_VERSION

FILES = {"package/build/3Dmol-min.js": "3Dmol-min.js", "package/LICENSE": "3Dmol.LICENSE.txt"}


def fetch() -> dict[str, bytes]:
    """The files of the npm package by the names they have here."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"3dmol@{VIEWER_VERSION}"], cwd=folder, check=True)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            members = {ours: archive.extractfile(theirs) for theirs, ours in FILES.items()}
            return {name: member.read() for name, member in members.items() if member}


def main() -> None:
    files = fetch()
    found = sha256(files["3Dmol-min.js"]).hexdigest()
    if found != VIEWER_SHA256:
        raise XDistillError(f"3Dmol-min.js has sha256 {found}, expected {VIEWER_SHA256}: nothing written")
    for name, content in files.items():
        (ASSETS / name).write_bytes(content)
        print(f"{ASSETS / name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
