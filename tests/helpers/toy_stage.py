"""A stage slow enough to be killed on its way. `python toy_stage.py FOLDER` runs it to the end."""

import sys
import time
from pathlib import Path

from mlx_visalign.runs.run import Run

ITEMS = list(range(200))
BATCH = 4


def work(items: list[int]) -> list[dict]:
    """None, one or two rows for an item, with text that a careless reader of lines would tear apart."""
    time.sleep(0.002)
    return [
        {"item": item, "copy": copy, "text": "eins\u2028zwei\x85", "of": items} for item in items for copy in range(item % 3)
    ]


def main(folder: Path) -> None:
    with Run(folder) as run:
        run.stage("toy", ITEMS, work, settings={"seed": 1}, batch=BATCH, title="toy")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
