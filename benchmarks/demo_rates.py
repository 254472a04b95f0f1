"""How the demo's learning rates were chosen: a search on the dev split, on seeds that the demo does not report.

The arms *none* and *full* are searched alike. Run ``python benchmarks/demo_rates.py``; artifacts are kept in ``work``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hskd.cli.progress import display
from hskd.grid.config import Machine, TrialConfig
from hskd.grid.executors import Workers
from hskd.grid.spec import load_grid
from hskd.grid.study import Study

SEEDS = (100, 101)
RATES = (2e-4, 4e-4, 8e-4)
OUT = Path("work/demo-rates")


def searched() -> list[TrialConfig]:
    """*none* at every rate; *full* at every rate of either stage, the other stage at the demo's."""
    grid = load_grid("demo").model_copy(update={"include": (), "seeds": SEEDS})
    trials = []
    for rate in RATES:
        for hsk_rate in RATES:
            if grid.training.hsk_lr != hsk_rate and grid.training.prediction_lr != rate:
                continue
            training = grid.training.model_copy(update={"hsk_lr": hsk_rate, "prediction_lr": rate})
            candidates = grid.model_copy(update={"training": training, "none_lr": rate}).trials(Machine.here())
            trials += [
                trial for trial in candidates if trial.settings.arm == "full" or hsk_rate == grid.training.hsk_lr
            ]
    return trials


def main() -> None:
    """Print the mean dev score of every setting."""
    trials = searched()
    rows = []
    with display() as shown:
        study = Study(trials, Path("work"), shown)
        study.build()
        for config, result, error in Workers(2).run(study, trials, OUT):
            if result is None:
                raise SystemExit(error)
            settings = config.settings
            rows.append(
                {
                    "arm": settings.arm,
                    "hsk_lr": settings.hsk_lr if settings.arm == "full" else 0.0,
                    "prediction_lr": settings.prediction_lr,
                    "dev_score": result["metrics"]["dev"]["score"],
                }
            )
            shown.trials(len(rows), 0, len(trials), str(rows[-1]))
    table = pd.DataFrame(rows).groupby(["arm", "hsk_lr", "prediction_lr"])["dev_score"]
    print(table.agg(["mean", "min", "max"]).to_string(float_format="%.4g"))


if __name__ == "__main__":
    main()
