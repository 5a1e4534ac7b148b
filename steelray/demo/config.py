"""Settings of the demo. Imports neither torch nor ray."""

from dataclasses import dataclass

from steelray.config import require


@dataclass(frozen=True)
class DemoConfig:
    """jobs/demo.py"""

    work_dir: str = ".demo"
    """Folder for object store, archive, bank and results; default `.demo`."""
    num_strips: int = 240
    """Strips generated and scored; default 240."""
    num_nominal: int = 120
    """Nominal strips generated, for the bank and its thresholds; default 120."""
    seed: int = 0
    """Seed of the generated strips."""
    """Seed of every generated strip; default 0."""

    def __post_init__(self) -> None:
        require(self.num_strips >= 8, "num_strips must be at least 8")
        require(self.num_nominal >= 5, "num_nominal must be at least 5")
