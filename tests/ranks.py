"""Runs a function in several processes that form one gloo group, for tests of what ranks do together."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

from bifocal import distributed


def run_on_ranks(
    function: Callable[..., None],
    *arguments: Any,
    world_size: int = 2,
    timeout_seconds: float = distributed.TIMEOUT_SECONDS,
) -> None:
    """Call `function(*arguments)` on each of `world_size` new processes; what one raises is raised here.

    `function` must stand at the top of an importable module, since a new process looks it up by name.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # a server that has imported everything once: a launch takes a second then, instead of ten
    multiprocessing.set_forkserver_preload(["bifocal.commands.train"])
    torch.multiprocessing.start_processes(
        _on_rank,
        args=(world_size, port, timeout_seconds, function, arguments),
        nprocs=world_size,
        start_method="forkserver",
    )


def _on_rank(
    rank: int,
    world_size: int,
    port: int,
    timeout_seconds: float,
    function: Callable[..., None],
    arguments: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert distributed.init_from_environment(timeout_seconds)
    try:
        function(*arguments)
    finally:
        distributed.shutdown()
