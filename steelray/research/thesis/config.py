"""Settings of jobs/reproduce_thesis.py. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelray.config import CalibrationConfig, DatasetConfig, require
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig
from steelray.reconstruction.config import (
    ConvAutoencoderConfig,
    DraemConfig,
    InputConfig,
    ModelKind,
    OptimizerConfig,
    SynthesisConfig,
    TrainConfig,
    TrainDataConfig,
)

DATASETS = ("bottle", "severstal")
METHODS = ("conv_ae", "patchcore", "draem")
CELLS = tuple(f"{dataset}/{method}" for dataset in DATASETS for method in METHODS)


@dataclass(frozen=True)
class TrainingRecipe:
    """Training of one of the two trained methods, the same on both datasets."""

    input: InputConfig = field(default_factory=InputConfig)
    draem: DraemConfig = field(default_factory=DraemConfig)
    conv_ae: ConvAutoencoderConfig = field(default_factory=ConvAutoencoderConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    num_epochs: int = 700
    """Passes over the training images."""
    num_steps: int | None = None
    """Length of the run in steps; overrides num_epochs."""
    batch_size: int = 8
    """Images per step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks."""
    checkpoint_every_steps: int = 500
    """Steps from one checkpoint to the next."""


@dataclass(frozen=True)
class PatchCoreRecipe:
    """Memory bank, the same on both datasets."""

    embedder: EmbedderConfig = field(default_factory=lambda: EmbedderConfig(levels=(1, 2, 3), resize_px=(256, 256)))
    coreset: CoresetConfig = field(default_factory=lambda: CoresetConfig(drop_suspects=False))
    scoring: ScoringConfig = field(default_factory=ScoringConfig)


@dataclass(frozen=True)
class ThesisConfig:
    """jobs/reproduce_thesis.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "bottle_root", "severstal_root", "label", "texture_uri", "only", "output_dir", "models_uri", "gpus_per_worker",
        "dry_run",
    )  # fmt: skip
    RECIPES: ClassVar[dict[str, tuple[str, ...]]] = {"conv_ae": (), "patchcore": (), "draem": ()}

    bottle_root: str
    """Folder of MVTec AD's bottle."""
    severstal_root: str
    """Folder of Severstal: train_images/ and train.csv."""
    label: str
    """What the recipe reduces against the thesis, shown with every figure; `full`: nothing."""
    texture_uri: str | None = None
    """Folder or s3:// prefix of DRAEM's source textures; null: generated ones."""
    output_dir: str = "results"
    """Folder of thesis.md; cells and pictures go into thesis/ below it."""
    models_uri: str = ".thesis"
    """Location of the trained models: a folder or s3://bucket/prefix."""
    only: tuple[str, ...] = ()
    """Cells to compute now, such as bottle/draem; empty: all that are missing."""
    severstal_num_fit: int = 20
    """Clean Severstal strips to learn from; the others are test images."""
    seed: int = 0
    """Seed of the Severstal split, the weights and the synthesis."""
    conv_ae: TrainingRecipe = field(default_factory=TrainingRecipe)
    """Training of the convolutional autoencoder."""
    patchcore: PatchCoreRecipe = field(default_factory=PatchCoreRecipe)
    """Memory bank of PatchCore."""
    draem: TrainingRecipe = field(default_factory=TrainingRecipe)
    """Training of DRAEM."""
    calibration: CalibrationConfig = field(
        default_factory=lambda: CalibrationConfig(held_out_fraction=0.1, false_alarm_rate=0.05)
    )
    num_workers: int = 1
    """Training processes."""
    cpus_per_worker: float = 1.0
    """CPU share, and so the threads, of one of them."""
    gpus_per_worker: float = 0.0
    """GPU share of one of them."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        require(bool(self.label.strip()), "label is empty: say what is reduced, or `full`")
        unknown = [cell for cell in self.only if cell not in CELLS]
        require(not unknown, f"only: {unknown and unknown[0]!r} is no cell; there are {', '.join(CELLS)}")
        for kind, recipe in (("conv_ae", self.conv_ae), ("draem", self.draem)):
            recipe.input.check_stride(kind)  # type: ignore[arg-type]

    def dataset(self, name: str) -> DatasetConfig:
        """Return the labelled images of a table: bottle as it is, Severstal in four tiles of 400x256 per strip."""
        if name == "bottle":
            return DatasetConfig(kind="mvtec", root=self.bottle_root)
        return DatasetConfig(
            kind="severstal", root=self.severstal_root, tiling="400x256", num_fit=self.severstal_num_fit, seed=self.seed
        )

    def training(self, dataset: str, kind: ModelKind, run_name: str) -> TrainConfig:
        """Return the settings of jobs/train.py for a cell."""
        recipe = self.draem if kind == "draem" else self.conv_ae
        synthesis = recipe.synthesis
        if kind == "draem" and self.texture_uri is not None:
            synthesis = SynthesisConfig(**{**vars(synthesis), "texture_uri": self.texture_uri})
        return TrainConfig(
            model=kind,
            data=TrainDataConfig(dataset=self.dataset(dataset)),
            output_uri=self.models_uri,
            run_name=run_name,
            input=recipe.input,
            draem=recipe.draem,
            conv_ae=recipe.conv_ae,
            synthesis=synthesis,
            optimizer=recipe.optimizer,
            calibration=self.calibration,
            num_epochs=recipe.num_epochs,
            num_steps=recipe.num_steps,
            batch_size=recipe.batch_size,
            precision=recipe.precision,
            seed=self.seed,
            checkpoint_every_steps=recipe.checkpoint_every_steps,
            num_workers=self.num_workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
        )
