"""Two processes on a CPU that shard a 4-bit model with adapters by FSDP2, as params/accelerate/fsdp_qlora.yaml asks.

`python -m tests.fsdp FOLDER`: prints the types of the weights and the losses of three steps, sharded and not. It takes
the model as `qlora` sets it up for FSDP, and shards it as accelerate does.
"""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

os.environ["ACCELERATE_USE_FSDP"] = "true"  # before the 4-bit weights are made

from gloss_utils.language import models, qlora, shapes, tiny

MODULES = ["q_proj", "v_proj", "up_proj", "down_proj"]
STEPS, PROCESSES = 3, 2


def write(folder: Path):
    """A tiny base model."""
    tiny.train_tokenizer(["Rose Toner", "Day Cream"], 300).save_pretrained(folder)
    shapes.write_model("tiny", folder)


def adapted(folder: Path):
    """The model with new adapters, in 4 bits that are stored as bf16, as on a GPU."""
    with mock.patch.object(models, "compute_dtype", lambda: torch.bfloat16):
        return qlora.with_adapters(folder, qlora.QLoRA(4, 4, 0.0, MODULES, True, 64, False, seed=1))[0]


def steps(model, rank: int, of: int) -> list[float]:
    """The losses of some steps on the same texts; this process takes its part of them."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    ids, losses = torch.arange(4 * 20).reshape(4, 20) % 250 + 3, []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids[rank::of], labels=ids[rank::of]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def work(rank: int, folder: Path, port: int):
    """One of the processes; the first prints."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=PROCESSES, rank=rank)
    model = adapted(folder)
    types = {}
    for weight in model.parameters():
        kind = "trained" if weight.requires_grad else "4 bits" if type(weight).__name__ == "Params4bit" else "rest"
        types.setdefault(kind, set()).add(str(weight.dtype))
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=dist.device_mesh.init_device_mesh("cpu", (PROCESSES,)), mp_policy=mixed)
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (PROCESSES,)), mp_policy=mixed)
    own = torch.tensor(steps(model, rank, PROCESSES))
    dist.all_reduce(own)
    if rank == 0:
        sharded = (own / PROCESSES).tolist()
        print(json.dumps({"types": {kind: sorted(found) for kind, found in types.items()}, "sharded": sharded}))
    dist.destroy_process_group()


def main():
    """Shard, train, and train alone."""
    folder = Path(sys.argv[1])
    write(folder)
    print(json.dumps({"alone": steps(adapted(folder), 0, 1)}))
    mp.spawn(work, (folder, int(sys.argv[2])), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
