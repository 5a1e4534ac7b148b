"""Every expected stop of work on the cluster is a `JobFailed` of one line; a bug keeps its traceback."""

import pyarrow as pa
import pytest
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from steelray.cluster.driver import expected_stops
from steelray.config import JobFailed
from steelray.patchcore.index import BankUnavailable
from steelray.storage.location import ObjectChanged


@pytest.mark.parametrize(
    "error",
    [RayError, ExecutionTimeoutError, BankUnavailable, ObjectChanged, OSError, PermissionError, pa.ArrowInvalid],
)
def test_an_expected_stop_is_one_line_with_its_cause_and_a_remedy(error: type[Exception]) -> None:
    with pytest.raises(JobFailed) as caught, expected_stops("run 7c1e", "run it again"):
        raise error("several lines\nof which the last counts\n")
    assert str(caught.value) == "run 7c1e stopped: of which the last counts; run it again"
    assert isinstance(caught.value.__cause__, error)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a bug"), expected_stops("run 7c1e"):
        raise ValueError("a bug")
