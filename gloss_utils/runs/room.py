"""What a run will write to disk and hold in memory, said before hours are spent on it."""

import psutil

from gloss_utils.base.files import read_json
from gloss_utils.runs import estimates
from gloss_utils.runs.artefacts import TO_MAKE
from gloss_utils.runs.contents import known_revision
from gloss_utils.runs.folder import RunFolder
from gloss_utils.search import on_disk
from gloss_utils.search.encoder import DEFAULT_ENCODER

DIMENSIONS = {DEFAULT_ENCODER: 384}  # of other encoders' vectors: 1024, which few exceed
METHODS = 10  # rankings that are written, with all rivals
BATCH_OF_USERS = 32  # prompts that are answered together, at a guess


def check(folder: RunFolder, parameters: dict) -> list[str]:
    """Lines on the disk and the memory that a run needs whose data are there. Raises `GlossError` where the disk has
    less, and where the base model cannot be had.

    parameters: those of all stages.
    """
    making = [name for name, state in folder.states(parameters).items() if state.kind == TO_MAKE]
    counts = read_json(folder.statistics)
    drawn = parameters["max_users"] or counts["users"]
    users = min(drawn, counts["users"])
    needed, lines = {"rankings": estimates.rankings(users, parameters["ranking_depth"], METHODS)}, []
    if {"base", "adapter"} & set(making):
        if parameters["base_model"] == "tiny":
            vocabulary = parameters["tiny_vocabulary"]
            size, lora = estimates.tiny_base(
                vocabulary, parameters["tiny_layers"], parameters["tiny_width"], parameters["lora_rank"]
            )
            needed["base"] = estimates.weights(size, vocabulary) + estimates.checkpoints(size)
        else:
            model = _sizes(folder, parameters)
            vocabulary, lora = model.vocabulary, model.lora(parameters["lora_modules"], parameters["lora_rank"])
            lines.append(_memory(model, lora, parameters))
        needed["adapter"] = estimates.weights(lora, vocabulary) + estimates.checkpoints(lora)
    if "dense" in making:
        dimensions, kind = DIMENSIONS.get(parameters["encoder"], 1024), parameters["index"]
        if kind == "auto":
            kind, _ = on_disk.choose(counts["items"], dimensions, on_disk.memory())
        needed["dense"] = estimates.dense_index(counts["items"], dimensions, kind)
    if "bm25" in making:
        needed["bm25"] = estimates.bm25_index(counts["items"])
    if "texts" in making:
        written = users, parameters["num_beams"], parameters["max_new_tokens"], counts["mean_history"]
        needed["texts"] = estimates.texts(*written)
    if "sasrec" in making:
        size = estimates.sasrec_parameters(counts["items"], parameters["sasrec_width"])
        needed["sasrec"] = estimates.weights(size) + estimates.checkpoints(size)
    return [estimates.check_disk(folder.root, needed), *lines]


def _sizes(folder: RunFolder, parameters: dict):
    """The base model in numbers, from its config."""
    from gloss_utils.language import models, sizes  # load torch and transformers

    revision = known_revision(folder.root, "base_model", parameters, folder.stages())
    return sizes.Sizes.of(models.load_config(parameters["base_model"], revision or parameters["base_revision"]))


def _memory(model, lora: int, parameters: dict) -> str:
    import torch

    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    weight, moment = 2 if on_gpu else 4, 1 if parameters["optimizer"] == "adamw_8bit" else 4
    base = estimates.base(model, parameters["load_in_4bit"], weight)
    tokens = parameters["batch_size"] * parameters["max_length"]
    training = estimates.training(model, lora, tokens, parameters["gradient_checkpointing"], moment, weight)
    sequences = BATCH_OF_USERS * parameters["num_beams"]
    writing = estimates.generation(model, sequences, parameters["max_length"], weight)
    return (
        f"Training will hold at most about {(base + training) / 2**30:.1f} GiB in {'GPU ' * on_gpu}memory, and "
        f"generation about {(base + writing) / 2**30:.1f}; {free / 2**30:.1f} GiB are free now."
    )
