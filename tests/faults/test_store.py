"""The store fails: a run ends complete and equal to the undisturbed one, or with a clear line and can be continued."""

import threading
import time
from urllib.parse import quote

import pytest

from steelray.runs.run import Run
from tests.faults.conftest import IMAGES, SLOW_IMAGES, FaultyPlant, strip_keys

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("slow_down", {"match": r" /archive", "first": 1}),
        ("reset", {"match": r"^GET /archive", "first": 2}),
        ("latency", {"match": IMAGES, "first": 1, "seconds": 5.0}),
        ("truncate", {"match": IMAGES, "first": 2}),
        ("corrupt", {"match": IMAGES, "first": 2}),
    ],
)
def test_passing_faults_change_nothing(
    plant_in_store: FaultyPlant, results_uri: str, fault: str, rule: dict[str, object]
) -> None:
    """Every request, or every image, is broken at first."""
    plant_in_store.proxy.plan({**rule, "fault": fault})
    ending = plant_in_store.run(results_uri)
    assert ending.code == 0, ending.stderr
    assert plant_in_store.proxy.done(fault) >= 160
    plant_in_store.check_like_clean(results_uri)


def test_a_lasting_corruption_is_a_row_and_never_a_score(plant_in_store: FaultyPlant, results_uri: str) -> None:
    damaged = strip_keys(3)
    matches = "|".join(quote(key) for key in damaged)
    plant_in_store.proxy.plan({"match": f"{IMAGES}({matches})", "fault": "corrupt"})
    ending = plant_in_store.run(results_uri)
    assert ending.code == 0, ending.stderr
    assert ending.summary["counts"]["changed"] == 3
    rows = {row["image_key"]: row for row in Run(results_uri, ending.summary["run_id"]).scores().to_pylist()}
    assert plant_in_store.clean is not None
    for clean in plant_in_store.clean.to_pylist():
        row = rows.pop(clean["image_key"])
        if clean["image_key"] in damaged:
            assert (row["status"], row["anomaly_score"]) == ("changed", None)
        else:
            assert row["anomaly_score"] == clean["anomaly_score"]
    assert not rows


def test_a_store_that_refuses_everything_is_one_line_and_can_be_continued(
    plant_in_store: FaultyPlant, results_uri: str
) -> None:
    plant_in_store.proxy.plan({"match": IMAGES, "fault": "slow_down"})
    ending = plant_in_store.run(results_uri)
    assert ending.code == 1
    assert "SlowDown" in ending.complaint
    plant_in_store.proxy.plan()
    plant_in_store.continue_after(ending, results_uri)


def test_credentials_that_expire_in_the_middle_are_named(plant_in_store: FaultyPlant, results_uri: str) -> None:
    plant_in_store.proxy.plan({"match": IMAGES, "fault": "expired", "after": 60}, SLOW_IMAGES)
    ending = plant_in_store.run(results_uri)
    assert ending.code == 1
    assert "refuses access (ExpiredToken): check the credentials" in ending.complaint
    assert "run the same command to continue" in ending.complaint
    plant_in_store.proxy.plan()
    assert plant_in_store.clean is not None
    flagged = sum(plant_in_store.clean.column("is_anomalous").to_pylist())
    assert plant_in_store.finish(results_uri).summary["counts"] == {"listed": 160, "ok": 160, "flagged": flagged}
    plant_in_store.check_like_clean(results_uri)


@pytest.mark.parametrize("away_s", [8, 60])
def test_the_store_goes_away_in_the_middle_and_comes_back(
    plant_in_store: FaultyPlant, results_uri: str, away_s: float
) -> None:
    plant_in_store.proxy.plan(SLOW_IMAGES)
    job = plant_in_store.start(results_uri)
    job.wait_until_some_rows_are_safe()
    plant_in_store.store.kill()
    back = threading.Timer(away_s, plant_in_store.store.start)
    back.start()
    start_s = time.monotonic()
    ending = job.end()
    back.join()
    assert time.monotonic() - start_s < 200
    plant_in_store.proxy.plan()
    plant_in_store.continue_after(ending, results_uri)
