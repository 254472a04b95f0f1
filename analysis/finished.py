"""Recognise a finished demo without importing the libraries that it ran with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from hskd.artifacts import SCHEMAS
from hskd.errors import HskdError
from hskd.hashing import fingerprint, known_sha256
from hskd.io import read_json, write_json
from hskd.tasks.builtin.mr import csv_path
from hskd.teachers.offline import minilm_folder

FILE = "summary.json"
_LIBRARIES = ("hskd", "torch", "transformers", "matplotlib")
_ENVIRONMENT = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES")
"""Environment variables that change a trial's precision or device."""


@dataclass(frozen=True)
class FinishedDemo:
    """The final output of a demo, stored beside its results.

    Attributes:
        folder: of the results.
        key: fingerprint of everything that the results depend on: preset, seeds, contents of data and model, hskd's
            schema numbers, library versions, environment variables and machine.
    """

    folder: Path
    key: str

    @classmethod
    def of(cls, folder: Path, preset: str, seeds: int) -> FinishedDemo:
        """Return the demo of a preset on this machine, finished or not."""
        content = {
            "preset": files("hskd.grid").joinpath("presets", f"{preset}.yaml").read_text(encoding="utf-8"),
            "seeds": seeds,
            "machine": platform.node(),
            "schemas": SCHEMAS,
            "contents": [known_sha256(path) for path in (csv_path(), minilm_folder() / "model.safetensors")],
            **{name: version(name) for name in _LIBRARIES},
            **{name: os.environ.get(name) for name in _ENVIRONMENT},
        }
        return cls(folder, fingerprint(content))

    def summary(self) -> str | None:
        """Return the stored output, or None if the demo is not finished or a result file has changed since."""
        try:
            content = read_json(self.folder / FILE)
        except (OSError, HskdError):
            return None
        same = isinstance(content, dict) and content.get("key") == self.key and content.get("files") == self._files()
        return str(content["summary"]) if same else None

    def write(self, summary: str) -> None:
        """Store the output with the state of the result files."""
        write_json(self.folder / FILE, {"key": self.key, "files": self._files(), "summary": summary})

    def _files(self) -> dict[str, Any]:
        """Return the size and modification time of every result file, by relative path."""
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file() and path.name != FILE)
        return {
            path.relative_to(self.folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths
        }
