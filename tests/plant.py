"""A plant in a folder: a bank, an archive of small strips and scoring runs, all made in this process."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, DecodeConfig, ReportConfig
from steelray.demo.synthetic import DEFECTS, make_strip
from steelray.imaging.decode import Undecodable, decode
from steelray.imaging.scorer import Scorer
from steelray.models.calibration import Calibration, calibrate, read_calibration, write_calibration
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.bank import bank_files
from steelray.patchcore.config import CoresetConfig, ScoringConfig
from steelray.patchcore.fit import fit_memory_bank
from steelray.patchcore.portable_embedder import Embedder
from steelray.report.finish import ScoringRun, finish_run
from steelray.runs.batch import BatchScorer, RunStamp
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.record import (
    DriftWarnings,
    GroupSummary,
    JobSummary,
    RunRecord,
    RunSummary,
    ScoredBy,
    ScoredSettings,
)
from steelray.runs.run import CHECKPOINT_DIR, SCORES_DIR, Run, run_id_of
from steelray.schema import DECODED
from steelray.storage.listing import list_archive
from steelray.storage.location import Location

SIZE_PX = (64, 256)
CALIBRATION = CalibrationConfig(false_alarm_rate=0.05, reject_rate=0.02, group_pattern=r"^(line\d)/")


def strip(index: int, *, seed: int = 0, defect: str | None = None, brightness: float | None = None) -> bytes:
    """Return a small strip as a JPEG file."""
    return make_strip(seed, index, defect=defect, size_px=SIZE_PX, brightness=brightness).jpeg()


def decoded(archive: Location, manifest: pa.Table) -> pa.Table:
    """Return the manifest's images as the reading tasks do, schema `DECODED`."""
    rows = []
    for row in manifest.to_pylist():
        try:
            pixels_HWC = decode(archive.read(row["image_key"]), DecodeConfig())
        except Undecodable as error:
            rows.append({**row, "status": str(error.status), "error": str(error)})
            continue
        shape = dict(zip(("height_px", "width_px", "channels"), pixels_HWC.shape, strict=True))
        brightness = float(pixels_HWC.mean())
        rows.append({**row, **shape, "status": "ok", "mean_brightness": brightness, "pixels": pixels_HWC.tobytes()})
    return pa.Table.from_pylist(rows, schema=DECODED)


def some_record(run_id: str, **changes: Any) -> RunRecord:
    """run.json of a scoring run of one strip, as far as it is read."""
    now = datetime.now(UTC)
    record = RunRecord(
        run_id,
        ScoredSettings(ArchiveConfig("archive"), DecodeConfig()),
        ScoredBy("model"),
        "bank",
        RunSummary(run_id, now.isoformat(), 1, 0, 0, (GroupSummary("", 1, 0, {"score": 1.0}),)),
        DriftWarnings(()),
        JobSummary(run_id, {"listed": 1, "ok": 1, "flagged": 0}, 0, 0, 1, 1.0, 1.0, 1.0, (), "scores", "report", "run"),
        now,
    )
    return replace(record, **changes)


_SCORERS: dict[str | None, Scorer] = {}
"""By bank id: copies of a plant share a scorer."""


@dataclass(frozen=True)
class Plant:
    """A folder with nominal/, held_out/, bank/, archive/ and results/."""

    root: Path

    def place(self, name: str) -> Location:
        """Return one of its folders."""
        return Location(str(self.root / name))

    @property
    def bank_uri(self) -> str:
        return str(self.root / "bank")

    @property
    def results_uri(self) -> str:
        return str(self.root / "results")

    def score(self, place: str, manifest: pa.Table, run_id: str, calibration: Calibration | None) -> pa.Table:
        """Return score rows as the actors make them."""
        model = open_model(self.bank_uri)
        if model.bank_id not in _SCORERS:
            _SCORERS[model.bank_id] = load_scorer(model, ComputeConfig(backend="eager"), num_threads=1)
        scorer = _SCORERS[model.bank_id]
        stamp = RunStamp(run_id, model.model_id, model.bank_id, model.input_size_px)
        return BatchScorer(scorer, stamp, calibration)(decoded(self.place(place), manifest))

    def config(self, **changes: Any) -> ScoreArchiveConfig:
        """Return settings of a scoring run, by default without a gallery."""
        settings = {"report": ReportConfig(gallery=0), **changes}
        return ScoreArchiveConfig(
            ArchiveConfig(str(self.root / "archive")), self.bank_uri, self.results_uri, **settings
        )

    def written_run(self, rows: pa.Table | None = None) -> tuple[Run, pa.Table]:
        """Write the rows (None: score them) of a run over the archive as it is now; return the run and its manifest."""
        manifest = list_archive(ArchiveConfig(str(self.root / "archive")))
        calibration, _ = read_calibration(self.bank_uri)
        run = Run(
            self.results_uri, run_id_of(manifest, calibration=asdict(calibration), rows=rows and rows.to_pylist())
        )
        rows = self.score("archive", manifest, run.run_id, calibration) if rows is None else rows
        for folder, part in ((SCORES_DIR, rows), (CHECKPOINT_DIR, rows.select(["image_key"]))):
            sink = pa.BufferOutputStream()
            pq.write_table(part, sink)
            run.location.write(f"{folder}/part.parquet", sink.getvalue().to_pybytes())
        run.write_manifest(manifest)
        return run, manifest

    def finish(self, run: Run, manifest: pa.Table, **changes: Any) -> dict[str, Any]:
        """Finish a run whose rows are written, and return its summary."""
        calibration, version = read_calibration(self.bank_uri)
        model = open_model(self.bank_uri)
        scoring = ScoringRun(self.config(**changes), run, model, calibration, version, datetime.now(UTC))
        facts = {"run_id": run.run_id, "model": {"model_id": model.model_id}, "bank_id": model.bank_id}
        return asdict(finish_run(scoring, manifest, facts, num_scored_now=manifest.num_rows, scoring_s=1.0))

    def run(self, **changes: Any) -> dict[str, Any]:
        """Score the archive as it is now, finish the run and return its summary."""
        return self.finish(*self.written_run(), **changes)


def build_plant(root: Path, embedder: Embedder, *, num_held_out: int = 60) -> Plant:
    """Build a bank of 8 nominal strips, calibrated on others, both of two lines; the archive is still empty."""
    plant = Plant(root)
    keys = [f"line{index % 2}/{index:02d}.jpg" for index in range(8)]
    for index, key in enumerate(keys):
        plant.place("nominal").write(key, strip(index))
    bank = fit_memory_bank(
        keys,
        [decode(plant.place("nominal").read(key)) for key in keys],
        embedder,
        coreset=CoresetConfig(ratio=0.05),
        scoring=ScoringConfig(),
    )
    for name, body in bank_files(bank):
        plant.place("bank").write(name, body)
    plant.place("bank").write("run.json", json.dumps({"config": {"nominal": {"uri": str(root / "nominal")}}}).encode())
    for index in range(num_held_out):
        plant.place("held_out").write(f"line{index % 2}/{index:03d}.jpg", strip(index, seed=1))
    rows = plant.score("held_out", list_archive(ArchiveConfig(str(root / "held_out"))), "calibration", None)
    columns = (rows.column(name).to_numpy() for name in ("anomaly_score", "map_peak", "map_mean"))
    write_calibration(plant.bank_uri, calibrate(rows.column("image_key").to_pylist(), *columns, CALIBRATION), rows, "x")
    return plant


def upload(plant: Plant, root: str, *names: str) -> None:
    """Copy folders of a plant to ROOT/NAME."""
    for name in names:
        there = Location(f"{root}/{name}")
        for stored in plant.place(name).list():
            there.write(stored.key, plant.place(name).read(stored.key))


def fill_archive(plant: Plant, stop: int, *, start: int = 0, darker: str | None = None) -> dict[str, str]:
    """Write strips `start` to `stop` of two lines, every eighth one defective; return the defects by key."""
    defects = {}
    for index in range(start, stop):
        line = f"line{index % 2}"
        key = f"{line}/strip {index:03d}.jpg"
        defect = DEFECTS[index // 8 % 4] if index % 8 == 7 else None
        brightness = 50.0 if line == darker else None
        plant.place("archive").write(key, strip(index, seed=2, defect=defect, brightness=brightness))
        if defect:
            defects[key] = defect
    return defects
