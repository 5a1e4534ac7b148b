"""The page of a memory bank: what it says, and that it is made whatever the strips are."""

import re
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from steelray.config import CalibrationConfig, ComputeConfig, ConfigError, DecodeConfig
from steelray.evaluation.power import Power, PowerCell
from steelray.imaging.pictures import patch_jpeg
from steelray.models.calibration import calibrate, read_calibration, read_calibration_rows, write_calibration
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.bank import BankFile, BankInfo, CoresetStatistics
from steelray.patchcore.config import EmbedderConfig, IndexConfig, ScoringConfig
from steelray.report.bank_checks import bank_checks, bank_headline, brightness_drifts
from steelray.report.bank_page import BANK_PAGE, _oddest, _source, render_bank_page, renew_bank_page, write_bank_page
from steelray.report.checks import Level
from steelray.report.data import BankData, BankFindings, Recipe, RecipeRow, Suspect
from steelray.report.page import render_report
from steelray.report.power_section import limits_in_words
from steelray.runs.batch import BatchScorer, RunStamp
from steelray.runs.exclude import read_excluded
from steelray.storage.listing import ArchiveConfig, list_archive
from tests.plant import Plant, decoded
from tests.report.examples import HOSTILE_KEY, example_run, gallery, score_table, thresholds
from tests.report.test_browser import click, saved
from tests.report.test_page import Outline, text_of

JPEG = patch_jpeg(np.zeros((96, 96, 1), np.uint8), (48, 48))


def info():
    file = BankFile("shard", 10, "0")
    return BankInfo(
        bank_id="b4nk", embedder=EmbedderConfig(), weights_digest="w", scoring=ScoringConfig(), input_size_px=None,
        num_vectors=120, dim=40, coreset=CoresetStatistics(12_000, 1.25, 1, 0.1), bytes_per_vector=160,
        index=IndexConfig(), shards=(file,), images=file, trained=None, created_at="2026-11-28", format_version=1,
    )  # fmt: skip


def bank_data(scores, *, config=None, brightness=None, keys=None, num_gallery=0, **changes):
    """Return the data of a page on nominal strips with these scores."""
    scores = np.asarray(scores, np.float32)
    rows = score_table(len(scores), num_failed=0, defect_rate=0)
    rows = rows.set_column(rows.schema.get_field_index("anomaly_score"), "anomaly_score", [scores])
    if keys is not None:
        rows = rows.set_column(0, rows.schema.field("image_key"), [keys])
    if brightness is not None:
        column = np.asarray(brightness, np.float32)
        rows = rows.set_column(rows.schema.get_field_index("mean_brightness"), "mean_brightness", [column])
    calibration = calibrate(rows["image_key"].to_pylist(), scores, scores, scores / 3, config or CalibrationConfig())
    values = {"gallery": gallery(rows, num_gallery), "nominal_uris": ["s3://archive/nominal"], **changes}
    return BankData("s3://archive/bank", info(), calibration, 1, rows, **values)


def normal(count, *odd, seed=0):
    scores = 5 + np.random.default_rng(seed).standard_normal(count)
    scores[: len(odd)] = odd
    return scores


def power(contrast):
    """Return the power of a model that finds textures of 48 px from a contrast on."""
    cells = [PowerCell("texture", 48, c, 8, 8 if contrast is not None and c >= contrast else 0) for c in (16, 32, 64)]
    return Power(12, (PowerCell("scratch", 16, 64, 8, 0), *cells))


def test_everything_is_on_the_page():
    findings = BankFindings(
        power(32),
        [("48 px texture, 32 grey levels", JPEG)],
        [Suspect("line1/7.jpg", 8.25, JPEG), Suspect("line1/8.jpg", 7.5)],
        Recipe((RecipeRow("levels 2, 3", 0.42, "0.1 s a strip", True), RecipeRow("large", None, "1 s")), "It is fast."),
    )
    data = bank_data(normal(60, 13.0), num_gallery=4, vectors_by_strip={HOSTILE_KEY: 12}, num_excluded=3,
                     findings=findings)  # fmt: skip
    page = render_bank_page(data)
    said = text_of(page)
    for words in (
        "60 nominal strips set the thresholds; 3 are excluded",
        "alone sets the review threshold of all strips: 13 with it, ",
        "sets a threshold alone · 10 % of the bank's vectors",
        "Half of the 48 px textures are found from 32 grey levels on.",
        "Half of the 16 px scratches are found at no contrast.",
        "48 px texture, 32 grey levels",
        "8.250 line1/7.jpg",
        "It is fast.",
        "the 2 oddest",
        "1 of 60 nominal strips are flagged",
        "120 of 12,000 patches",
        "1600 × 256 px",
        "1.25",
    ):
        assert words in said.replace("\u00a0", " "), words
    assert len(page) < 8_000_000


def test_the_page_holds_no_markup_but_its_own():
    outline = Outline(render_bank_page(bank_data(normal(60, 13.0), num_gallery=4)))
    assert len(outline.all("script")) == 1
    assert not [name for _, attributes in outline.elements for name in attributes if name.startswith("on")]
    assert HOSTILE_KEY in outline.text
    assert not [link for link in outline.all("a") if link.get("href", "").startswith("javascript")]


def test_absent_findings_have_no_section():
    said = text_of(render_bank_page(bank_data(normal(60))))
    assert not re.search("planted|Suspicious|Settings that were compared", said, re.IGNORECASE)
    assert "None was found" in text_of(render_bank_page(bank_data(normal(60), findings=BankFindings(suspects=()))))


def test_a_model_that_finds_nothing_says_so_first():
    data = bank_data(normal(60, 13.0), findings=BankFindings(power(None)))
    level, sentence = bank_headline(data, bank_checks(data))
    assert level == Level.PROBLEM
    assert sentence == (
        "This model cannot decide: none of the planted defects is found at any size; add strips like " + HOSTILE_KEY
    )
    able = replace(data, findings=BankFindings(power(16)))
    assert bank_headline(able, bank_checks(able))[0] == Level.LOOK
    assert limits_in_words(power(None))[-1] == "Half of the 48 px textures are found at no contrast."


def test_a_sound_bank_says_so():
    data = bank_data(normal(400))
    assert bank_headline(data, bank_checks(data)) == (Level.OK, "The bank is built and sound")


@pytest.mark.parametrize(
    "scores",
    [[3.0], [3.0, 9.0], [2.0] * 30, [0.0] * 30, np.geomspace(1, 1e6, 40), [0.0, 0.0, 5.0]],
    ids=["one strip", "two", "all alike", "all zero", "all odd", "three"],
)
def test_a_page_is_made_of_any_strips(scores):
    data = bank_data(scores, num_gallery=min(2, len(scores)), brightness=[100.0] * len(scores))
    assert f"{len(scores)} nominal strips set the thresholds" in text_of(render_bank_page(data))


def test_groups_of_one_strip_use_the_thresholds_of_all():
    config = CalibrationConfig(group_pattern=r"(\d+)\.jpg$")
    data = bank_data(normal(30), config=config, keys=[f"{number}.jpg" for number in range(30)])
    assert set(data.calibration.groups) == {""}
    said = text_of(render_bank_page(data))
    assert "Drift of brightness not judged" in said
    assert "29 1" in said, "the count of the group"


def test_missing_support_is_never_shown_as_reject():
    """Run page and bank page say the same of the same thresholds."""
    few, some = bank_data(normal(6)), bank_data(normal(60))
    words = "6 nominal strips support no reject threshold above that of review"
    for page in (render_bank_page(few), run_page(few)):
        assert words in text_of(page)
        assert 'class="reject"' not in page
        assert "never not supported" in text_of(page)
    bank, run = text_of(render_bank_page(some)), text_of(run_page(some))
    line = re.search("all strips: the reject threshold is extrapolated from 60 strips [^;]*; [a-z 0-9.]*", bank)
    assert line is not None
    assert line[0] in run
    assert thresholds("", normal(400)).has_reject


def run_page(bank):
    """Return the page of a run that the bank's thresholds have judged."""
    limits = bank.calibration.groups
    scores = score_table(60, groups=("",), limits=limits)
    return render_report(replace(example_run(60, 0, groups=("",)), scores=scores, thresholds=list(limits.values())))


def test_brightness_is_judged_in_each_group():
    keys = [f"line{number // 30}/{number:03d}.jpg" for number in range(60)]
    pattern = CalibrationConfig(group_pattern=r"^(line\d)/")
    steady = 100 + np.random.default_rng(0).standard_normal(60)
    stepped = steady + 40 * (np.arange(60) >= 30)
    assert [d.drifted for d in brightness_drifts(*rows_of(bank_data(normal(60), brightness=stepped, keys=keys)))] == [
        True
    ]
    grouped = bank_data(normal(60), config=pattern, brightness=stepped, keys=keys)
    assert [drift.drifted for drift in brightness_drifts(*rows_of(grouped))] == [False, False]
    rising = bank_data(normal(60), config=pattern, brightness=steady + np.arange(60) % 30, keys=keys)
    assert [drift.drifted for drift in brightness_drifts(*rows_of(rising))] == [True, True]
    assert "Brightness drifts over the keys" in text_of(render_bank_page(rising))


def rows_of(data):
    return data.rows, data.calibration


class TestStoredBank:
    @pytest.fixture
    def built(self, plant: Plant) -> Plant:
        """A plant whose bank is calibrated on the strips that it was fitted on, each without its own vectors."""
        model = open_model(plant.bank_uri)
        scorer = load_scorer(model, ComputeConfig(), num_threads=1, nominal=True)
        manifest = list_archive(ArchiveConfig(str(plant.root / "nominal")))
        stamp = RunStamp("calibration", model.model_id, model.bank_id, model.input_size_px)
        rows = BatchScorer(scorer, stamp, nominal=True)(decoded(plant.place("nominal"), manifest))
        columns = (rows[name].to_numpy() for name in ("anomaly_score", "map_peak", "map_mean"))
        calibration = calibrate(rows["image_key"].to_pylist(), *columns, CalibrationConfig())
        write_calibration(plant.bank_uri, calibration, rows, "nominal strips")
        return plant

    def test_nearest_neighbours_come_from_other_strips(self, built: Plant) -> None:
        page = write_bank_page(built.bank_uri, nominal=[str(built.root / "nominal")])
        assert page == f"{built.bank_uri}/{BANK_PAGE}"
        outline = Outline(built.place("bank").read(BANK_PAGE).decode())
        assert len([one for one in outline.all("article") if "data-key" in one]) == 8
        said = text_of(built.place("bank").read(BANK_PAGE).decode())
        assert "nan" not in said
        for key in {f"line{number % 2}/{number:02d}.jpg" for number in range(8)}:
            assert not re.search(f" {key} Normal .{{0,200}}Nearest normal patch is from {key}", said)

    def test_maps_are_those_of_the_calibration(self, built: Plant) -> None:
        """The worst patch of the oddest strip lies where its map without own vectors peaks."""
        model = open_model(built.bank_uri)
        calibration, version = read_calibration(built.bank_uri)
        rows = read_calibration_rows(built.bank_uri, version)
        source = _source(model, calibration, [str(built.root / "nominal")], DecodeConfig(), ComputeConfig(), 1)
        assert source is not None
        items = _oddest(source, rows, 3)
        ranked = sorted(rows.to_pylist(), key=lambda row: -row["anomaly_score"])[:3]
        assert [item.image_key for item in items] == [row["image_key"] for row in ranked]
        assert all(item.nominal_key not in (None, item.image_key) for item in items)
        assert items[0].boxes == (), "no pixel of the strip that sets the pixel threshold exceeds it"

    def test_a_bank_without_its_strips_still_gets_a_page(self, built: Plant) -> None:
        shutil.rmtree(built.root / "nominal")
        write_bank_page(built.bank_uri, nominal=[str(built.root / "nominal")])
        assert "No pictures were made" in text_of(built.place("bank").read(BANK_PAGE).decode())
        write_bank_page(built.bank_uri, nominal=[])
        assert "8 nominal strips set the thresholds" in text_of(built.place("bank").read(BANK_PAGE).decode())

    def test_strips_of_earlier_archives_are_found(self, built: Plant) -> None:
        """A grown bank has several nominal archives."""
        (built.root / "empty").mkdir()
        write_bank_page(built.bank_uri, nominal=[str(built.root / "empty"), str(built.root / "nominal")])
        outline = Outline(built.place("bank").read(BANK_PAGE).decode())
        assert len([one for one in outline.all("article") if "data-key" in one]) == 8

    def test_a_recalibration_renews_the_page(self, built: Plant) -> None:
        assert renew_bank_page(built.bank_uri, num_threads=1) is None, "there was none"
        built.place("bank").write(BANK_PAGE, b"old")
        assert renew_bank_page(built.bank_uri, num_threads=1, num_excluded=2) == f"{built.bank_uri}/{BANK_PAGE}"
        assert "2 are excluded" in text_of(built.place("bank").read(BANK_PAGE).decode())

    def test_other_models_have_no_page(self, tmp_path) -> None:
        with pytest.raises(ConfigError, match="no model there"):
            write_bank_page(str(tmp_path))


def test_the_saved_verdicts_are_a_list_to_exclude(browser, tmp_path):
    data = bank_data(normal(60, 13.0), num_gallery=4)
    (tmp_path / "bank.html").write_text(render_bank_page(data), encoding="utf-8")
    browser.open(tmp_path / "bank.html")
    browser.js("localStorage.clear()")
    browser.open(tmp_path / "bank.html")
    click(browser, "#strip-1 [data-say=true_alarm]")
    click(browser, "#strip-2 [data-say=false_alarm]")
    click(browser, "#save-verdicts")
    (tmp_path / "odd.csv").write_text(saved(browser, "verdicts-bank-b4nk-1.csv"), encoding="utf-8")
    assert read_excluded(str(tmp_path / "odd.csv")) == [HOSTILE_KEY]
    assert browser.complaints() == []


def test_the_page_fits_a_phone_and_its_headings_do_not_skip_a_level(browser, tmp_path):
    findings = BankFindings(power(32), [("a caption", JPEG)], [Suspect("line1/" + 60 * "k", 8.25, JPEG)])
    (tmp_path / "bank.html").write_text(render_bank_page(bank_data(normal(60, 13.0), num_gallery=4, findings=findings)))
    for width_px in (320, 768, 1920):
        browser.show(width_px, 800)
        browser.open(tmp_path / "bank.html")
        assert browser.js("return document.documentElement.scrollWidth") <= width_px
    levels = browser.js(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].filter((e) => e.checkVisibility())"
        ".map((e) => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
