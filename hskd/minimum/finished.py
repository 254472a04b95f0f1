"""The file of a finished search. It holds the answer and all evidence, so nothing has to run to look at it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hskd.artifacts import read_record, write_record
from hskd.errors import HskdError
from hskd.minimum.search import Batch, Confirmation, Known, Outcome, Rates, Scored, SearchSettings, Trial
from hskd.minimum.sequential import Judgement
from hskd.minimum.space import Candidate
from hskd.minimum.surrogate import Estimates
from hskd.spec import HSKSpec

ANSWER_FILE = "find-answer.json"
"""File beside the results that holds the answer of the last search that ended there, and its evidence."""
_AGAIN = "Run the search again: it repeats no trial whose result is there."


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished search.

    Attributes:
        outcome: verdict, reason and evidence of the search.
        chosen: the candidates, the cheapest first.
        full_bytes: bytes an example of full HSK.
        settings: of the search, such as the tolerance and the level.
        title: task and student.
        command: the ``hskd distill`` command of the answer; None where there is no answer.
    """

    outcome: Outcome
    chosen: Sequence[Candidate]
    full_bytes: float
    settings: SearchSettings
    title: str
    command: str | None


def write_finished(folder: Path, finished: Finished) -> None:
    """Write a finished search into the folder of its results."""
    content = {
        "title": finished.title,
        "command": finished.command,
        "settings": asdict(finished.settings),
        "full_bytes": finished.full_bytes,
        "candidates": {one.name: one.bytes_per_example for one in finished.chosen},
        "outcome": _outcome(finished.outcome),
    }
    write_record(folder / ANSWER_FILE, _finite(content))


def read_finished(folder: Path) -> Finished:
    """Read the search that ended in a folder.

    Raises:
        HskdError: no search ended there, or another version wrote the file.
        CorruptionError: the file is damaged.
    """
    file = folder / ANSWER_FILE
    if not file.is_file():
        raise HskdError(f"{file}: no such file: expected the folder of a search that has ended. {_AGAIN}")
    content = read_record(file, _AGAIN)
    try:
        settings = content["settings"] | {"rates": Rates(*content["settings"]["rates"])}
        return Finished(
            _read_outcome(content["outcome"]),
            [Candidate.of(HSKSpec.parse(label), size) for label, size in content["candidates"].items()],
            content["full_bytes"],
            SearchSettings(**settings),
            content["title"],
            content["command"],
        )
    except (LookupError, TypeError, ValueError, AttributeError, HskdError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise HskdError(f"{file}: not written by this version of hskd ({cause}). {_AGAIN}") from error


def _outcome(outcome: Outcome) -> dict[str, Any]:
    known, estimates = outcome.known, outcome.known.estimates
    return {
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "answer": outcome.answer,
        "too_little": outcome.too_little,
        "trials": known.trials,
        "gap": None if known.gap is None else asdict(known.gap),
        "noise": known.noise,
        "estimates": None if estimates is None else {"mean": estimates.mean, "spread": estimates.spread},
        "chain": known.chain,
        "dearer": known.dearer,
        "looks": known.looks,
        "tests": [asdict(test) for test in known.tests],
        "rates": known.rates,
        "history": [asdict(batch) for batch in outcome.history],
        "scores": [
            {"arm": arm, "candidate": candidate, "by_seed": {str(seed): scored for seed, scored in by_seed.items()}}
            for (arm, candidate), by_seed in outcome.scores.items()
        ],
    }


def _read_outcome(content: Mapping[str, Any]) -> Outcome:
    estimates = content["estimates"]
    known = Known(
        trials=content["trials"],
        gap=None if content["gap"] is None else _judgement(content["gap"]),
        noise=float(content["noise"]),
        estimates=estimates and Estimates(np.array(estimates["mean"], float), np.array(estimates["spread"], float)),
        chain=tuple(content["chain"]),
        dearer=tuple(content.get("dearer", ())),  # Searches of earlier versions had none.
        looks=tuple(content["looks"]),
        tests=tuple(
            Confirmation(test["candidate"], _judgement(test["judgement"]), float(test["loss"]), test["failed"])
            for test in content["tests"]
        ),
        rates={name: Rates(*rates) for name, rates in content["rates"].items()},
    )
    history = tuple(
        Batch(
            batch["stage"],
            batch["why"],
            tuple(Trial(arm, index, seed, rates and Rates(*rates)) for arm, index, seed, rates in batch["trials"]),
        )
        for batch in content["history"]
    )
    scores = {
        (point["arm"], point["candidate"]): {int(seed): Scored(*scored) for seed, scored in point["by_seed"].items()}
        for point in content["scores"]
    }
    return Outcome(
        verdict=content["verdict"],
        reason=content["reason"],
        answer=content["answer"],
        too_little=content["too_little"],
        known=known,
        history=history,
        scores=scores,
    )


def _judgement(content: Mapping[str, Any]) -> Judgement:
    return Judgement(content["verdict"], content["n"], *(float(content[name]) for name in ("mean", "low", "high")))


def _finite(value: Any) -> Any:
    """Return a value as JSON has it; NaN and infinities, which JSON lacks, become texts that ``float`` reads."""
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
