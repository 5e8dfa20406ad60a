"""Workers of a cluster: how many GPUs each gets, and what is refused before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from persona_core.errors import NotFound, SettingError
from persona_core.utils.ray import Workers, cluster


def visible() -> tuple[str | None, int]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


def missing() -> None:
    raise NotFound("No such model.")


@pytest.fixture(scope="module")
def four_gpus() -> Iterator[Any]:
    """A cluster that believes in four GPUs: Ray counts them, and tells each worker which are its own."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_each_worker_sees_as_many_gpus_as_were_asked_for(four_gpus: Any) -> None:
    for gpus, wanted in ((2, 2), (4, 4), (None, 1), (0, 0)):
        with cluster(Workers(4, gpus)) as workers:
            seen, process = workers.ask(visible)
        assert len(seen.split(",") if seen else []) == wanted, gpus
        assert (process == os.getpid()) == (wanted == 0), "with GPUs the driver loads nothing"
    assert four_gpus.is_initialized(), "a cluster that was there before stays"


@pytest.mark.slow
def test_a_workers_error_is_the_error(four_gpus: Any) -> None:
    del four_gpus
    for gpus in (0, 1):
        with cluster(Workers(1, gpus)) as workers, pytest.raises(NotFound, match="No such model"):
            workers.ask(missing)


@pytest.mark.slow
def test_more_gpus_than_there_are_is_said_at_once(four_gpus: Any) -> None:
    del four_gpus
    with pytest.raises(SettingError, match="needs 8 GPUs, and the cluster has 4"), cluster(Workers(1, 8)):
        pass


@pytest.mark.parametrize(("n", "available", "wanted"), [(2, 2, 1.0), (3, 2, 0.0), (1, 0, 0.0)])
def test_without_a_wish_each_takes_one_where_all_can(n: int, available: int, wanted: float) -> None:
    assert Workers(n).check(available) == wanted


@pytest.mark.parametrize("gpus", [-1, float("nan"), "2"])
def test_what_is_no_number_of_gpus_is_refused(gpus: Any) -> None:
    with pytest.raises(SettingError, match="gpus_per_worker"):
        Workers(1, gpus)
    with pytest.raises(SettingError, match="n_workers"):
        Workers(0)
