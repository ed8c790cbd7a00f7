"""Files as FSDP's ranks save them, made by torch on gloo: `python fsdp_ranks.py RANK 4 FOLDER`, once for each rank.

FOLDER/N has the files of N processes, and whole.pt beside them, for N = 2 and 4; other folders have what goes wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def laid_out(size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(whole tensors, the same spread over the ranks) for meshes of one and of two dimensions."""
    line, grid = init_device_mesh("cpu", (size,)), init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))
    whole, spread = {}, {}
    for name, tensor, mesh, placements in (
        ("rows", torch.randn(7, 5), line, [Shard(0)]),
        ("columns", torch.randn(3, 6).bfloat16(), line, [Shard(1)]),
        ("fewer rows than ranks", torch.randn(1, 6), line, [Shard(0)]),
        ("alike", torch.randn(3, 2), line, [Replicate()]),
        ("scalar", torch.tensor(3.0), line, [Replicate()]),
        ("nothing", torch.zeros(0, 3), line, [Shard(0)]),
        ("hybrid", torch.randn(5, 4), grid, [Replicate(), Shard(0)]),
        ("both dimensions", torch.randn(5, 7), grid, [Shard(0), Shard(1)]),
        ("one dimension twice", torch.randn(11, 3), grid, [Shard(0), Shard(0)]),
        ("two rows twice", torch.randn(2, 3), grid, [Shard(0), Shard(0)]),
        ("turned", torch.randn(6, 4).t(), line, [Shard(0)]),
        ("whole numbers", torch.arange(10), line, [Shard(0)]),
    ):
        whole[name], spread[name] = tensor, distribute_tensor(tensor.clone(), mesh, placements)
    whole["tied"], spread["tied"] = whole["rows"], spread["rows"]
    whole["plain"] = spread["plain"] = torch.arange(3.0)
    return whole, spread


def models(size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same of models under fully_shard, one of them on top of tensor parallelism."""
    line, grid = init_device_mesh("cpu", (size,)), init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))
    plain, parallel = (nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 5)) for _ in range(2))
    both = {"a": plain, "b": parallel}
    whole = {
        f"{name}.{key}": value.clone() for name, model in both.items() for key, value in model.state_dict().items()
    }
    parallelize_module(parallel, grid["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for model, mesh in ((plain, line), (parallel, grid["dp"])):
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
    spread = {f"{name}.{key}": value for name, m in both.items() for key, value in m.state_dict().items()}
    return whole, spread


def work(rank: int, size: int, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store{size}", rank=rank, world_size=size)
    torch.manual_seed(0)

    def save(folder: str, state: object) -> None:
        (place / folder).mkdir(exist_ok=True)
        torch.save(state, place / folder / f"model_world_size_{size}_rank_{rank}.pt")

    (whole, spread), (of_models, spread_models) = laid_out(size), models(size)
    save(str(size), spread | spread_models)
    if rank == 0:
        torch.save(whole | of_models, place / str(size) / "whole.pt")
    if size == 2:
        line = init_device_mesh("cpu", (2,))
        save("nested", {"model": {"w": spread["rows"]}, "step": 3})
        save("sums", {"w": DTensor.from_local(torch.ones(2, 2), line, [Partial()])})
        save("statistics", {"w": spread["rows"], "mean": torch.full((3,), float(rank))})
        save("names", {"w": spread["rows"], **({"more": torch.ones(1)} if rank else {})})
        save("kinds", {"w": spread["rows"] if rank else torch.ones(7, 5)})
        block = torch.ones(2, 2)
        lazy = DTensor.from_local(torch._neg_view(block) if rank else block, line, [Shard(0)], run_check=False)
        save("lazy", {"w": spread["rows"], "view": lazy})
        save("shapes", {"w": DTensor.from_local(torch.ones(2 + rank, 2), line, [Shard(0)], run_check=False)})
    dist.destroy_process_group()


if __name__ == "__main__":
    rank, size, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    work(rank, size, place)
    if rank < 2:
        work(rank, 2, place)
