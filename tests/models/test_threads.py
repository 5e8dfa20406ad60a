"""Threads for a model: one for a small one, unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from persona_core.models import threads
from persona_core.models.threads import fit_threads
from tests.support.tiny import tiny_lm


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    threads._usual.cache_clear()
    yield
    threads._usual.cache_clear()
    torch.set_num_threads(before)


def test_a_small_model_gets_one_thread() -> None:
    fit_threads(tiny_lm("llama", "chatml"), {})
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_the_user_has_set_stays(name: str) -> None:
    fit_threads(tiny_lm("llama", "chatml"), {name: "2"})
    assert torch.get_num_threads() == 2


def test_what_is_small_depends_on_what_it_does() -> None:
    fit_threads(tiny_lm("llama", "chatml"), {}, below=1)
    assert torch.get_num_threads() == 2


def test_a_larger_model_has_all_also_after_a_small_one() -> None:
    fit_threads(tiny_lm("llama", "chatml"), {})
    fit_threads(tiny_lm("llama", "chatml"), {}, below=1)
    assert torch.get_num_threads() == 2
