import socket
import time

import pytest

from steelray.cluster.connect import _check_answers
from steelray.config import ConfigError


def test_an_address_where_nobody_answers_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        start_s = time.monotonic()
        with pytest.raises(ConfigError, match=rf"RAY_ADDRESS 127.0.0.1:{port}: no Ray cluster answers"):
            _check_answers(f"127.0.0.1:{port}")
    assert time.monotonic() - start_s < 6


def test_a_job_server_is_no_address_for_a_driver() -> None:
    with pytest.raises(ConfigError, match="ray job submit"):
        _check_answers("http://127.0.0.1:8265")


@pytest.mark.parametrize("address", ["auto", "local", "ray://head:10001"])
def test_names_that_ray_knows_are_left_to_it(address: str) -> None:
    _check_answers(address)


def test_an_open_port_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _check_answers(f"127.0.0.1:{server.getsockname()[1]}")
