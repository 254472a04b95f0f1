"""One trial from Python: ``hskd.run_trial``."""

from __future__ import annotations

from pathlib import Path

from hskd.io import with_home
from hskd.progress import Progress, Silent
from hskd.trials.config import TrialConfig
from hskd.trials.execute import execute
from hskd.trials.result import TrialResult
from hskd.trials.workspace import Workspace


def run_trial(
    config: TrialConfig,
    work: str | Path = "work",
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> TrialResult:
    """Run one trial and return its result; a finished trial is read instead of run again::

        done = TrialResult.read(Path("results/mr-joint/trials/<id>.json"))
        result = hskd.run_trial(TrialConfig.model_validate(done.config))
        print(result.metrics["dev"]["score"])

    Args:
        config: everything that the result depends on.
        work: folder of the artifacts that the trial needs: teacher, student, stores. Missing artifacts are made.
        folder: folder of the trial [default: in ``work``, named by a fingerprint of its config].
        progress: receives progress reports [default: none].

    Raises:
        HskdError: an artifact that the trial needs cannot be read or made, or a loss is not finite.
        MismatchError: parts of the config do not belong together, or ``folder`` holds another trial.
    """
    place = None if folder is None else Path(with_home(str(folder)))
    workspace = Workspace(Path(with_home(str(work))), [config], folder=place)
    return execute(config, workspace, progress or Silent())
