"""Settings of the demo. Imports neither torch nor ray."""

from dataclasses import dataclass

from steelray.config import require


@dataclass(frozen=True)
class DemoConfig:
    """jobs/demo.py"""

    work_dir: str = ".demo"
    """Scratch folder: object store, archive, bank and results."""
    num_strips: int = 240
    """Strips of the generated archive that is scored."""
    num_nominal: int = 80
    """Generated nominal strips: four tenths to learn from, the others to set thresholds on."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.num_strips >= 8, "num_strips must be at least 8")
        require(self.num_nominal >= 5, "num_nominal must be at least 5")
