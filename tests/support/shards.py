"""Shards with invalid contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from hskd.hashing import file_sha256, fingerprint
from hskd.store_format.layout import MANIFEST, shard_name


def rewritten(folder: Path, change: Any, shard: int = 0) -> None:
    """Change the arrays of a shard and update manifest and checksum, as in a deliberate manipulation."""
    path = folder / shard_name(shard)
    arrays = load_file(path)
    change(arrays)
    save_file({name: array.contiguous() for name, array in arrays.items()}, path)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"][shard] |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    del manifest["checksum"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"checksum": fingerprint(manifest)}))
