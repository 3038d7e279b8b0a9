"""What ranks do together equals what one process does alone."""

import pytest
import torch

from bifocal import distributed
from bifocal.config import UserError
from ranks import run_on_ranks


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not distributed.init_from_environment()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    tensor = torch.ones(3, requires_grad=True)
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.gather_with_gradient(tensor) is tensor
    distributed.barrier()
    distributed.shutdown()


def test_a_half_set_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT is not: start with torchrun"):
        distributed.init_from_environment()


def test_two_ranks_equal_one_process() -> None:
    run_on_ranks(_check_reductions)


def _check_reductions() -> None:
    """On each of two ranks; one launch checks all, since a launch takes seconds."""
    rank = distributed.rank()
    assert distributed.world_size() == 2
    assert distributed.is_main() == (rank == 0)

    counts = torch.tensor([1.0, 10.0]) * (rank + 1)
    assert torch.equal(distributed.all_reduce_sum(counts), torch.tensor([3.0, 30.0]))
    assert torch.equal(counts, torch.tensor([1.0, 10.0]) * (rank + 1))

    assert torch.equal(distributed.from_first_rank(torch.tensor([rank, rank + 5])), torch.tensor([0, 5]))

    everything = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)  # (R * b, D)
    weight = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
    whole = everything.clone().requires_grad_()
    (weight * (whole @ whole.T)).sum().backward()

    mine = everything[2 * rank : 2 * rank + 2].clone().requires_grad_()
    gathered = distributed.gather_with_gradient(mine)
    assert torch.equal(gathered, everything)
    (weight * (gathered @ gathered.T)).sum().backward()
    assert mine.grad is not None and whole.grad is not None
    # Both ranks compute the whole loss, so the gradient is that of their sum: exactly twice the one.
    assert torch.equal(mine.grad, 2 * whole.grad[2 * rank : 2 * rank + 2])

    assert distributed.gather_objects(rank + 5) == [5, 6]
    assert distributed.object_from_first_rank([rank]) == [0]

    # Ranks with three rows and one: what each makes of all rows adds up to what one process makes of them.
    share = slice(0, 3) if rank == 0 else slice(3, 4)
    for together in (distributed.gather_with_gradient, _by_visits):
        mine = everything[share].clone().requires_grad_()
        found = together(mine)
        assert torch.equal(found, everything)
        (weight[share] * (mine @ found.T)).sum().backward()
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, whole.grad[share], rtol=1e-12, atol=1e-12)

    empty = everything[: 2 * rank].clone().requires_grad_()  # the first rank has nothing
    for source, rows in distributed.visits(empty):
        assert torch.equal(rows, everything[: 2 * source])
        (rows.sum() * (rank + 1)).backward()
    assert empty.grad is not None
    assert torch.equal(empty.grad, torch.full_like(empty, 3.0))

    with pytest.raises(ValueError, match="rows of the same shape"):
        distributed.gather_with_gradient(torch.ones(2, 3 + rank))
    distributed.barrier()


def _by_visits(tensor: torch.Tensor) -> torch.Tensor:
    """All rows in the order of ranks, put together from what comes by."""
    found = dict(distributed.visits(tensor))
    return torch.cat([found[rank] for rank in sorted(found)])
