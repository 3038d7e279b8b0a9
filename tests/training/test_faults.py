"""Faults that a run must survive: one of each here, all of them where there is time (`make test-all`)."""

from __future__ import annotations

from pathlib import Path

import pytest

import faults
from faults import Tried, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("faults"), ["vqvae-ema"])


@pytest.fixture(scope="module")
def whole_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("faults"))


def all_survived(tried: Tried) -> bool:
    return tried.tried > 0 and tried.survived == tried.tried


def test_killed_once(world: World) -> None:
    assert all_survived(faults.killed_at_random(world, ["vqvae-ema"], 1))


def test_killed_in_a_write(world: World) -> None:
    assert all_survived(faults.killed_in_writes(world, ["vqvae-ema"], [14]))


def test_the_disk_is_full(world: World) -> None:
    assert all_survived(faults.disk_full(world, ["vqvae-ema"]))


def test_the_disk_is_full_at_the_end(world: World) -> None:
    assert all_survived(faults.disk_full_at_end(world, ["vqvae-ema"]))


def test_the_clock_goes_backwards(world: World) -> None:
    assert all_survived(faults.clock_goes_back(world, ["vqvae-ema"]))


@pytest.mark.slow
def test_killed_at_twenty_random_moments(whole_world: World) -> None:
    assert all_survived(faults.killed_at_random(whole_world, faults.KINDS, 20))


@pytest.mark.slow
def test_killed_in_every_write(whole_world: World) -> None:
    assert all_survived(faults.killed_in_writes(whole_world, ["vqvae-ema", "vlm-continuous"], range(1, 500)))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [False, True])
def test_asked_to_stop(whole_world: World, workers: bool) -> None:
    assert all_survived(faults.asked_to_stop(whole_world, faults.KINDS, workers))


@pytest.mark.slow
def test_a_byte_is_flipped(whole_world: World) -> None:
    assert all_survived(faults.byte_flipped(whole_world, faults.KINDS))


@pytest.mark.slow
def test_the_disk_is_full_whatever_is_trained(whole_world: World) -> None:
    assert all_survived(faults.disk_full(whole_world, faults.KINDS))
    assert all_survived(faults.disk_full_at_end(whole_world, faults.KINDS))


@pytest.mark.slow
def test_a_loss_is_not_a_number(whole_world: World) -> None:
    assert all_survived(faults.not_a_number(whole_world))


@pytest.mark.slow
def test_pictures_are_corrupt(tmp_path: Path) -> None:
    assert all_survived(faults.corrupt_pictures(tmp_path))


@pytest.mark.slow
def test_a_rank_is_lost(tmp_path: Path) -> None:
    assert all_survived(faults.rank_lost(tmp_path))
