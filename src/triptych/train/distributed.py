"""One process or several: what must be summed or gathered between them.

With one process nothing here touches ``torch.distributed``. More are started by ``torchrun``, whose
environment is the one thing read from outside. It must not know models, losses or what the sums mean.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def setup(device: str | None = None) -> torch.device:
    """Join the processes that torchrun started (gloo for CPU tensors, nccl for CUDA's); alone, join nothing.

    Returns where this process computes. ``device`` is "cpu" or "cuda"; None takes CUDA where there is any.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(kind)
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # One process evaluates while the others wait, which may take hours on a large model.
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))
    return place


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def teardown() -> None:
    """Leave the other processes; nothing to do alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_sum(tensor: Tensor) -> Tensor:
    """The element-wise sum over processes, the same everywhere; the argument is not changed."""
    if not dist.is_initialized():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """Every process's value, in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # every place is filled now


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over processes: sums, for the loss's denominators are global.

    A parameter without gradient counts as zero, so every process makes the same calls; one that has none
    on any process keeps none, as it would in a single process.
    """
    if not dist.is_initialized():
        return
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    used = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=trained[0].device)
    dist.all_reduce(used)
    calls = []
    for p, n in zip(trained, used.tolist(), strict=True):
        if n:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = grad.contiguous()
            calls.append(dist.all_reduce(p.grad, async_op=True))  # all under way at once
    for call in calls:
        call.wait()
