"""Two processes on a CPU that shard a 4-bit model with adapters by FSDP2, as params/accelerate/fsdp_qlora.yaml asks.

`python -m tests.fsdp FOLDER PORT LOSS`: prints the types of the weights and the losses of three steps, sharded and not.
It takes the model as `qlora` sets it up for FSDP, and shards it as accelerate does. LOSS: text or catalogue.
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

from gloss_utils.language import catalogue_loss, models, qlora, shapes, tiny
from gloss_utils.language.trie import Trie

MODULES = ["q_proj", "v_proj", "up_proj", "down_proj"]
STEPS, PROCESSES, END = 3, 2, 2
TITLES = [[8, first, second, END] for first in (20, 21, 22, 23) for second in (30, 31)]


def write(folder: Path):
    """A tiny base model."""
    tiny.train_tokenizer(["Rose Toner", "Day Cream"], 300).save_pretrained(folder)
    shapes.write_model("tiny", folder)


def adapted(folder: Path):
    """The model with new adapters, in 4 bits that are stored as bf16, as on a GPU."""
    with mock.patch.object(models, "compute_dtype", lambda: torch.bfloat16):
        return qlora.with_adapters(folder, qlora.QLoRA(4, 4, 0.0, MODULES, True, 64, False, seed=1))[0]


def loss_on_texts(model, rank: int, of: int) -> torch.Tensor:
    """The next-token loss on this process's part of some texts."""
    ids = (torch.arange(4 * 20).reshape(4, 20) % 250 + 3)[rank::of]
    return model(input_ids=ids, labels=ids).loss


def loss_on_catalogue(model, rank: int, of: int) -> torch.Tensor:
    """The loss at the two choices of each title that this process has, of which others have as many."""
    trie = Trie(TITLES)
    texts = [[*range(40, 46), *title] for title in TITLES[::2][rank::of]]
    ids, nodes = torch.tensor(texts), torch.tensor([catalogue_loss.Choices(trie, END).nodes(text) for text in texts])
    labels = torch.where(nodes == catalogue_loss.NOWHERE, catalogue_loss.IGNORED, ids)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "nodes": nodes}
    return catalogue_loss.loss(model, batch, trie.to("cpu"))


LOSSES = {"text": loss_on_texts, "catalogue": loss_on_catalogue}


def steps(model, loss_of: str, rank: int, of: int) -> list[float]:
    """The losses of some steps on the same texts, of which this process takes its part."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSSES[loss_of](model, rank, of)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def work(rank: int, folder: Path, port: int, loss_of: str):
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
    own = torch.tensor(steps(model, loss_of, rank, PROCESSES))
    dist.all_reduce(own)
    if rank == 0:
        sharded = (own / PROCESSES).tolist()
        print(json.dumps({"types": {kind: sorted(found) for kind, found in types.items()}, "sharded": sharded}))
    dist.destroy_process_group()


def main():
    """Shard, train, and train alone."""
    folder, port, loss_of = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    write(folder)
    print(json.dumps({"alone": steps(adapted(folder), loss_of, 0, 1)}))
    mp.spawn(work, (folder, port, loss_of), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
