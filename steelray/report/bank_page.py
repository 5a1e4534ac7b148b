"""The page of a memory bank: the oddest nominal strips, the thresholds with and without them, and what the bank covers.

`render_bank_page` is a pure function of `BankData`; `write_bank_page` gathers it from a stored, calibrated bank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from steelray.config import ComputeConfig, ConfigError, DecodeConfig
from steelray.description import parse
from steelray.evaluation.choose import Candidate
from steelray.evaluation.power import read_power
from steelray.models.calibration import ALL_STRIPS, Calibration, read_calibration, read_calibration_rows
from steelray.models.model import Model, nominal_uris, open_model
from steelray.models.odd import Alternative, alternatives
from steelray.patchcore.bank import read_origins
from steelray.patchcore.suspects import Suspect
from steelray.report import words
from steelray.report.bank_checks import (
    bank_checks,
    bank_headline,
    brightness_in_order,
    image_sizes,
    oddest_rows,
    setters_of,
)
from steelray.report.cards import Card, fitting_cards
from steelray.report.data import BankData, GalleryItem
from steelray.report.figures import MAX_CHARTS, bank_charts
from steelray.report.findings import gather_findings
from steelray.report.gallery import UNAVAILABLE, GallerySource, draw_gallery
from steelray.report.html import render_page
from steelray.report.page import MAX_DATA_BYTES
from steelray.report.power_section import power_section
from steelray.schema import Verdict
from steelray.storage.location import Location

BANK_PAGE = "bank.html"
NUM_ODDEST = 20
SAYS = (("true_alarm", "Leave out"), ("false_alarm", "Keep"))
"""Verdicts on a nominal strip, as `exclude` of jobs/build_memory_bank.py reads them, and their buttons."""
MAX_SIZES = 10
"""Image sizes in the table, the most frequent ones."""


@dataclass(frozen=True)
class BuildFindings:
    """Findings of the build, as its summary holds them.

    Attributes:
        suspects: patches that the bank dropped; None: it looked for none.
        candidates: recipes that were compared.
    """

    suspects: tuple[Suspect, ...] | None = None
    candidates: tuple[Candidate, ...] = ()
    recipe: str | None = None


def write_bank_page(
    model_uri: str,
    *,
    nominal: Sequence[str] | None = None,
    decode: DecodeConfig | None = None,
    compute: ComputeConfig | None = None,
    num_threads: int = 1,
    count: int = NUM_ODDEST,
    num_excluded: int = 0,
    skipped: Mapping[str, int] | None = None,
    found: BuildFindings | None = None,
) -> str:
    """Write the page of a calibrated bank beside it. Pictures that cannot be made are left out.

    Args:
        nominal: locations of the nominal images; None: those that the bank's run.json names.
        count: oddest strips to show.
        num_excluded: nominal strips that the user has excluded.
        skipped: nominal images that could not be read, by status.
        found: findings of the build; None: those that the bank's run.json names.

    Returns:
        The URI of the page.

    Raises:
        ConfigError: there is no bank, or it has no calibration.
    """
    model, location = open_model(model_uri), Location(model_uri)
    if model.bank is None:
        raise ConfigError(f"{model_uri}: a {model.method} model has no bank, and so no bank page")
    calibration, version = read_calibration(model_uri)
    rows = read_calibration_rows(model_uri, version)
    places = nominal_uris(model_uri) if nominal is None else list(dict.fromkeys(nominal))
    source = _source(model, calibration, places, decode or DecodeConfig(), compute or ComputeConfig(), num_threads)
    found = found or _recorded(location).summary
    power = read_power(model_uri, calibration)
    data = BankData(
        bank_uri=model_uri,
        info=model.bank,
        calibration=calibration,
        calibration_version=version,
        rows=rows,
        nominal_uris=places,
        gallery=_oddest(source, rows, count) if source and count else [],
        vectors_by_strip=_vectors_by_strip(model),
        num_excluded=num_excluded,
        skipped=skipped or {},
        findings=gather_findings(source, rows, power, found.suspects, found.candidates, found.recipe),
    )
    location.write(BANK_PAGE, render_bank_page(data).encode())
    return f"{location}/{BANK_PAGE}"


@dataclass(frozen=True)
class _RecordedSettings:
    """Settings of the job that built a bank."""

    decode: DecodeConfig = field(default_factory=DecodeConfig)


@dataclass(frozen=True)
class _Recorded:
    """A bank's run.json, as far as its page needs it."""

    config: _RecordedSettings = field(default_factory=_RecordedSettings)
    summary: BuildFindings = field(default_factory=BuildFindings)


def _recorded(location: Location) -> _Recorded:
    if not location.exists("run.json"):
        return _Recorded()
    return parse(_Recorded, location.read("run.json"), f"{location}/run.json", "restore or delete the file")


def renew_bank_page(model_uri: str, *, num_threads: int, pictures: bool = True, num_excluded: int = 0) -> str | None:
    """Write the page of a bank anew after a recalibration.

    Args:
        pictures: draw the oddest strips; not possible if the calibration rests on strips of runs.

    Returns:
        The URI of the page; None if the model had none.
    """
    location = Location(model_uri)
    if not location.exists(BANK_PAGE):
        return None
    return write_bank_page(
        model_uri,
        decode=_recorded(location).config.decode,
        num_threads=num_threads,
        count=NUM_ODDEST if pictures else 0,
        num_excluded=num_excluded,
    )


def _source(
    model: Model,
    calibration: Calibration,
    places: Sequence[str],
    decode: DecodeConfig,
    compute: ComputeConfig,
    num_threads: int,
) -> GallerySource | None:
    if not places:
        return None
    archives = tuple(Location(uri) for uri in places)
    return GallerySource(
        archive=archives[0],
        model=model,
        calibration=calibration,
        decode=decode,
        compute=compute,
        num_threads=num_threads,
        nominal=True,
        nominal_places=archives,
    )


def _oddest(source: GallerySource, rows: pa.Table, count: int) -> list[GalleryItem]:
    """Draw the oddest nominal strips as the calibration has scored them: without their own vectors."""
    chosen = rows.take(oddest_rows(rows, source.calibration)[:count]).to_pylist()
    for row in chosen:
        limits = source.calibration.thresholds_of(row["group"] or ALL_STRIPS)
        row["verdict"] = str(Verdict.REVIEW if row["anomaly_score"] > limits.review.value else Verdict.NORMAL)
        if limits.has_reject and row["anomaly_score"] > limits.reject.value:
            row["verdict"] = str(Verdict.REJECT)
    try:
        return draw_gallery(source, chosen)
    except UNAVAILABLE:  # the store fails: the bank is complete without its pictures
        return []


def _vectors_by_strip(model: Model) -> dict[str, int]:
    assert model.bank is not None
    origins_N3, keys = read_origins(Location(model.uri).read, model.bank)
    images, counts = np.unique(origins_N3[:, 0], return_counts=True)
    found: dict[str, int] = {}
    for image, number in zip(images.tolist(), counts.tolist(), strict=True):
        found[keys[image]] = found.get(keys[image], 0) + number
    return found


@dataclass(frozen=True)
class _NominalCard:
    """A nominal strip of the gallery and what else is said of it."""

    card: Card
    note: str


@dataclass(frozen=True)
class _Choice:
    """A row of the table of thresholds with and without the oddest strips; `cost` says what it costs."""

    thresholds: Alternative
    without: str
    cost: str


def render_bank_page(data: BankData) -> str:
    """Render the page of a bank as HTML."""
    checks = bank_checks(data)
    level, sentence = bank_headline(data, checks)
    groups = _groups(data)
    alone = len(groups) == 1
    return render_page(
        "bank.html.j2",
        ("gallery.js",),
        data=data,
        run_id=f"bank-{data.info.bank_id}-{data.calibration_version}",
        level=level,
        headline=sentence,
        checks=sorted(checks, key=lambda check: -check.level.urgency),
        cards=_cards(data),
        says=SAYS,
        groups=[name for name, _ in groups],
        group_title=partial(words.group_name, alone=alone),
        group_counts=groups,
        limits=list(data.calibration.groups.values()),
        choices=_choices(data),
        charts=bank_charts(data, brightness_in_order(data.rows, data.calibration)),
        sizes=image_sizes(data.rows)[:MAX_SIZES],
        num_sizes=len(image_sizes(data.rows)),
        power=power_section(data.findings.power, data.findings.planted),
        details=_details(data),
    )


def _groups(data: BankData) -> list[tuple[str, int]]:
    """Count the strips of every group, the one of strips without a group last."""
    names = [data.calibration.group_of(key) for key in data.rows["image_key"].to_pylist()]
    order = sorted(set(names), key=lambda name: (name == ALL_STRIPS, name))
    return [(name, names.count(name)) for name in order]


def _cards(data: BankData) -> list[_NominalCard]:
    def limit_of(group: str) -> float:
        return data.calibration.thresholds_of(group).review.value

    alone = {key: len(setters.image_keys) for setters in setters_of(data) for key in setters.image_keys}
    total = max(1, data.info.num_vectors)
    found = []
    for card in fitting_cards(data.gallery, limit_of, MAX_DATA_BYTES):
        key = card.item.image_key
        notes = []
        if key in alone:
            notes.append("sets a threshold alone" if alone[key] == 1 else f"sets a threshold, one of {alone[key]}")
        if key in data.vectors_by_strip:
            notes.append(f"{words.percent(data.vectors_by_strip[key] / total)} of the bank's vectors")
        found.append(_NominalCard(card, " · ".join(notes)))
    return found


def _choices(data: BankData) -> list[_Choice]:
    """Return the thresholds with and without the oddest strips of the first groups, and what each costs."""
    scores_N = data.rows["anomaly_score"].to_numpy()
    found: list[_Choice] = []
    as_is: dict[str, Alternative] = {}
    for one in alternatives(data.calibration, data.rows["image_key"].to_pylist(), scores_N):
        as_is.setdefault(one.group, one)
        if len(as_is) > MAX_CHARTS:
            break
        share, low, high = one.share_above
        false_alarms = (
            f"{one.num_above} of {one.num_strips} nominal strips are flagged "
            f"({words.percent(share)}; {words.percent(low)} to {words.percent(high)})"
        )
        highest, without = as_is[one.group].review.value, "none"
        cost = false_alarms
        if one.num_left_out:
            without = f"the {one.num_left_out} oddest" if one.num_left_out > 1 else "the oddest"
            if one.review.value < highest:
                them = "them" if one.num_left_out > 1 else "it"
                passing = f"{words.score(one.review.value)} to {words.score(highest)}"
                cost += f"; with {them}, scores from {passing} pass"
        found.append(_Choice(one, without, cost))
    return found


def _details(data: BankData) -> list[tuple[str, str]]:
    info, coreset = data.info, data.info.coreset
    most = max(data.vectors_by_strip.items(), key=lambda entry: entry[1], default=None)
    lines = {
        "Bank": f"{info.bank_id} at {data.bank_uri}",
        "Built": info.created_at,
        "Nominal images": ", ".join(data.nominal_uris),
        "Excluded by hand": words.number(data.num_excluded) if data.num_excluded else "",
        "Backbone": f"{info.embedder.backbone}, levels {', '.join(map(str, info.embedder.levels))}",
        "Vectors": f"{words.number(info.num_vectors)} of {info.dim} dimensions",
        "Candidates": f"{words.number(coreset.num_candidates)} patches",
        "Cover radius": f"{coreset.cover_radius:.4g}",
        "Strips with vectors": words.number(len(data.vectors_by_strip)),
        "Most vectors from": f"{most[0]}: {words.percent(most[1] / max(1, info.num_vectors))}" if most else "",
        "Grown from": ", ".join(coreset.grown_from),
        "Recall of the index": f"{info.recall['recall_at_1']:.4f}" if info.recall else "",
        "Calibration": f"version {data.calibration_version}, {words.number(data.rows.num_rows)} strips",
    }
    return [(name, value) for name, value in lines.items() if value]
