"""Count the lengths of the examples of three GLUE tasks and write them to ``benchmarks/lengths.json``.

The counts are of training examples, tokenised with BERT's uncased WordPiece vocabulary (part of the offline model
package) and truncated to the task's maximum length. This needs the official GLUE files.

    python -m hskd.benchmarks.count_lengths ../shared/glue
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from hskd.benchmarks.data import LENGTHS_FILE
from hskd.io import write_json
from hskd.tasks import load_task, tokenize
from hskd.teachers.loading import load_tokenizer
from hskd.teachers.settings import OFFLINE_MINILM

TASKS = ("cola", "sst2", "rte")


def counted(task: str, folder: Path) -> dict[str, object]:
    """Return how many training examples of a task have each length, and how many different tokens they use."""
    with tempfile.TemporaryDirectory() as cache:
        train = tokenize(load_task(task, str(folder)), load_tokenizer(OFFLINE_MINILM), Path(cache))["train"]
        lengths, examples = np.unique(train.lengths, return_counts=True)
        return {
            "examples": len(train),
            "max_length": train.max_length,
            "mean_length": round(float(train.lengths.mean()), 2),
            "vocabulary": len(np.unique(train.input_ids)),
            "lengths": {str(length): int(count) for length, count in zip(lengths, examples, strict=True)},
        }


def main() -> None:
    """Count the lengths and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("glue", type=Path, help="folder that holds CoLA, SST-2 and RTE")
    folder = parser.parse_args().glue
    write_json(LENGTHS_FILE, {task: counted(task, folder) for task in TASKS})


if __name__ == "__main__":
    main()
