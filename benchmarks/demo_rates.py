"""How the demo's learning rates were chosen: a search on the dev split, on seeds that the demo does not report.

The arms *none* and *full* are searched alike. Run ``python benchmarks/demo_rates.py``; trials are kept in ``work``.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

from hskd.cli.progress import display
from hskd.demo import Demo, DemoPlan

SEEDS = (100, 101)
RATES = (2e-4, 4e-4, 8e-4)


def main() -> None:
    """Print the mean dev score of every setting."""
    plan = DemoPlan()
    rows = []
    with display() as shown:
        demo = Demo(plan, Path("work"), shown)
        for seed, prediction_lr in itertools.product(SEEDS, RATES):
            settings = [plan.arm("none", seed, prediction_lr=prediction_lr)]
            settings += [plan.arm("full", seed, prediction_lr=prediction_lr, hsk_lr=hsk_lr) for hsk_lr in RATES]
            rows += [demo.trial(setting, None, f"{setting.arm}, seed {seed}") for setting in settings]
    table = pd.DataFrame(rows)
    table["hsk_lr"] = table["hsk_lr"].where(table["arm"] == "full")
    print(table.groupby(["arm", "hsk_lr", "prediction_lr"], dropna=False)["dev_score"].agg(["mean", "min", "max"]))


if __name__ == "__main__":
    main()
