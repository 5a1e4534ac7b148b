"""Rows of an ablation as Ray tasks: the same figures as in one process, and errors that stay one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from steelray.config import ConfigError
from steelray.patchcore.config import EmbedderConfig
from steelray.research.ablation.remote import remote_rows
from steelray.research.ablation.results import read_rows, rows_to_do, run_ablation
from steelray.research.ablation.settings import AblationSetting
from tests.cluster.conftest import silent
from tests.research.ablation.conftest import ablation, local_rows, member, write_dataset

SETTINGS = (AblationSetting("bank", members=(member(),)), AblationSetting("baseline", method="local_deviation"))


@pytest.mark.usefixtures("cluster")
def test_rows_side_by_side_equal_rows_one_after_the_other(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "strips")
    here = ablation(data, tmp_path / "here", *SETTINGS)
    there = ablation(data, tmp_path / "there", *SETTINGS)
    run_ablation(here, lambda rows: local_rows(here, rows), silent)
    run_ablation(there, lambda rows: remote_rows(there, rows), silent)
    assert rows_to_do(there) == []
    one, two = read_rows(tmp_path / "here"), read_rows(tmp_path / "there")
    assert len(one) == 2
    assert one.keys() == two.keys()
    for name, row in one.items():  # BLAS has one thread in a task and all here: distances may differ in the last bit
        assert two[name]["figures"] == pytest.approx(row["figures"], rel=1e-6)


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_in_a_row_is_said_in_one_line(tmp_path: Path) -> None:
    config = ablation(write_dataset(tmp_path / "strips"), tmp_path / "out", *SETTINGS)
    nowhere = replace(config, data=replace(config.data, root=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="no such folder"):
        list(remote_rows(nowhere, rows_to_do(nowhere)))
    unknown = replace(SETTINGS[0], members=(replace(member(), embedder=EmbedderConfig(backbone="no_such_net")),))
    with pytest.raises(ConfigError, match="no_such_net"):
        list(remote_rows(config, [(unknown, 0)]))
    with pytest.raises(ConfigError, match="lower num_cpus_per_row"):
        list(remote_rows(replace(config, num_cpus_per_row=64.0), rows_to_do(config)))
