"""The line that a user reads when a step fails on another process."""

import pyarrow as pa
import pytest
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from steelray.cluster.connect import cause_in_one_line

FULL = "[Errno 28] No space left on device"


def write_onto_a_full_disk(batch: pa.Table) -> pa.Table:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise OSError(28, "No space left on device") from error


def test_the_failure_of_a_step_is_told_without_what_ray_data_says_around_it(cluster: dict[str, float]) -> None:
    step = ray.data.range(4).map_batches(write_onto_a_full_disk, batch_format="pyarrow")
    with pytest.raises(ray.exceptions.RayError) as caught:
        step.materialize()
    assert cause_in_one_line(caught.value) == f"OSError: {FULL}"


class _Damaged(Datasource):  # type: ignore[misc]
    """Something to read that cannot be read."""

    def estimate_inmemory_data_size(self) -> int:
        return 1

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        return [ReadTask(lambda: [write_onto_a_full_disk(pa.table({}))], BlockMetadata(1, 1, None, None))]


def test_the_failure_of_a_reading_task_is_told_without_ray_datas_advice(cluster: dict[str, float]) -> None:
    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.data.read_datasource(_Damaged()).materialize()
    assert cause_in_one_line(caught.value) == f"OSError: {FULL}"


def test_the_failure_of_a_task_is_its_last_line(cluster: dict[str, float]) -> None:
    failing = ray.remote(num_cpus=0)(write_onto_a_full_disk)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(failing.remote(pa.table({})))
    assert cause_in_one_line(caught.value) == f"OSError: {FULL}"


@pytest.mark.parametrize(("error", "line"), [(OSError("one\n two \n"), "two"), (ValueError(), "ValueError")])
def test_other_errors_are_told_by_their_last_line_or_name(error: Exception, line: str) -> None:
    assert cause_in_one_line(error) == line
