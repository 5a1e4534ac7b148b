from dataclasses import replace

import pytest

from steelray.cluster.placement import MAX_SKEW_S, NodeReport, problems_of

FINE = NodeReport("plant-3", 0.0, {"ray": "2.60.0", "torch": "2.14.1"}, (), cuda=False)


def test_a_node_like_the_driver_has_no_problem() -> None:
    assert problems_of("10.0.0.3", FINE, FINE.versions, 1.5, needs_gpu=False) == []


@pytest.mark.parametrize(
    ("node", "skew_s", "needs_gpu", "line"),
    [
        (replace(FINE, versions={"ray": "2.60.0"}), 0, False, "10.0.0.3 has no torch: install requirements.txt there"),
        (
            replace(FINE, versions={"ray": "2.60.0", "torch": "2.11.0"}),
            0,
            False,
            "10.0.0.3 has torch 2.11.0, the driver 2.14.1: install requirements.txt there",
        ),
        (
            replace(FINE, unreachable=("s3://archive: access denied",)),
            0,
            False,
            "10.0.0.3 cannot use a location that the job needs: s3://archive: access denied",
        ),
        (FINE, MAX_SKEW_S + 60, False, "10.0.0.3: its clock is 360 s ahead of the driver's: run NTP there"),
        (FINE, -MAX_SKEW_S - 60, False, "10.0.0.3: its clock is 360 s behind the driver's: run NTP there"),
        (FINE, 0, True, "10.0.0.3 offers a GPU that torch cannot use: check its NVIDIA driver"),
    ],
)
def test_what_is_wrong_with_a_node_is_one_line(node: NodeReport, skew_s: float, needs_gpu: bool, line: str) -> None:
    assert problems_of("10.0.0.3", node, FINE.versions, skew_s, needs_gpu) == [line]
