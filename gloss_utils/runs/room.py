"""What a run will write to disk and hold in memory, said before hours are spent on it."""

import psutil

from gloss_utils.base import hub
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json
from gloss_utils.base.unsloth_first import is_wanted
from gloss_utils.rank.weights import HybridSettings
from gloss_utils.report import tables
from gloss_utils.report.metrics import SEEN
from gloss_utils.runs import estimates
from gloss_utils.runs.artefacts import TO_MAKE
from gloss_utils.runs.contents import known_revision
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import texts_per_user
from gloss_utils.search import on_disk
from gloss_utils.search.encoder import DEFAULT_ENCODER

DIMENSIONS = {DEFAULT_ENCODER: 384}  # of other encoders' vectors: 1024, which few exceed
RANKINGS = len(SEEN) * len(tables.METHODS) + 3  # of all methods by stage 5, and by stage 4 of those from texts
BATCH_OF_USERS = 32  # prompts that are answered together, at a guess


def check(folder: RunFolder, parameters: dict) -> list[str]:
    """Lines on the disk and the memory that a run needs whose data are there. Raises `GlossError` where the disk has
    less, where the base model cannot be had, lacks one of `lora_modules`, or is too large for the GPU.

    parameters: those of all stages.
    """
    making = [name for name, state in folder.states(parameters).items() if state.kind == TO_MAKE]
    counts = read_json(folder.statistics)
    drawn = parameters["max_users"] or counts["users"]
    users = min(drawn, counts["users"])
    needed, lines = {"rankings": estimates.rankings(users, parameters["ranking_depth"], RANKINGS)}, []
    if {"base", "adapter"} & set(making):
        in_full = parameters["tuning"] == "full"
        if parameters["base_model"] == "tiny":
            vocabulary = parameters["tiny_vocabulary"]
            size, lora = estimates.tiny_base(
                vocabulary, parameters["tiny_layers"], parameters["tiny_width"], parameters["lora_rank"]
            )
            needed["base"] = estimates.weights(size, vocabulary) + estimates.checkpoints(size)
        else:
            model = _sizes(folder, parameters)
            vocabulary, size = model.vocabulary, model.parameters
            lora = model.lora(parameters["lora_modules"], parameters["lora_rank"])
            lines += _memory(model, size if in_full else lora, parameters)
        trained = size if in_full else lora
        needed["adapter"] = estimates.weights(trained, vocabulary) + estimates.checkpoints(trained)
    if "dense" in making:
        dimensions, kind = DIMENSIONS.get(parameters["encoder"], 1024), parameters["index"]
        if kind == "auto":
            kind, _ = on_disk.choose(counts["items"], dimensions, on_disk.memory())
        needed["dense"] = estimates.dense_index(counts["items"], dimensions, kind)
        needed["encoding"] = estimates.FLOAT * dimensions * counts["items"]  # its parts, until the index is whole
    if "bm25" in making:
        needed["bm25"] = estimates.bm25_index(counts["items"])
    if "texts" in making:
        written = users, texts_per_user(parameters), parameters["max_new_tokens"], counts["mean_history"]
        needed["texts"] = estimates.texts(*written)
    if "cooccurrence" in making:
        settings = HybridSettings.read(parameters["ranking_weights"])
        needed["cooccurrence"] = estimates.cooccurrence(
            counts["items"], counts["interactions"], settings.neighbours, settings.window
        )
    if "sasrec" in making:
        size = estimates.sasrec_parameters(counts["items"], parameters["sasrec_width"])
        trained = bool(parameters["sasrec_search"]) + parameters["sasrec_seeds"]
        widest = estimates.sasrec_parameters(counts["items"], max(parameters["sasrec_width"], 256))
        size = max(size, widest) if parameters["sasrec_search"] else size
        needed["sasrec"] = parameters["sasrec_seeds"] * estimates.weights(size) + trained * estimates.checkpoints(size)
    return [estimates.check_disk(folder.root, needed), *lines]


def _sizes(folder: RunFolder, parameters: dict):
    """The base model in numbers, from its config."""
    from gloss_utils.language import models, qlora, sizes  # load torch and transformers

    revision = known_revision(folder.root, "base_model", parameters, folder.stages()) or parameters["base_revision"]
    model = sizes.Sizes.of(models.load_config(parameters["base_model"], revision))
    qlora.check_modules(parameters["base_model"], parameters["lora_modules"], revision)
    hub.check_room(parameters["base_model"], revision, 2 * model.parameters)  # as most are published, in 16 bits
    return model


def _memory(model, trained: int, parameters: dict) -> list[str]:
    """A line on what is held in memory, and one on how training could fit where it may not. Raises `GlossError` where
    a GPU is too small for any. trained: the parameters that are."""
    import torch

    from gloss_utils.language import memory

    on_gpu, in_4bit, longest = torch.cuda.is_available(), parameters["load_in_4bit"], parameters["max_length"]
    free, total = torch.cuda.mem_get_info() if on_gpu else (psutil.virtual_memory().available, None)
    in_full = trained == model.parameters
    way = memory.CPU if not on_gpu else memory.UNSLOTH if is_wanted() and not in_full else memory.PEFT
    moment, checkpointing = 1 if parameters["optimizer"] == "adamw_8bit" else 4, parameters["gradient_checkpointing"]
    training = memory.Training(model, trained, way, in_4bit, moment)
    needs = training.needs(parameters["batch_size"] * longest, checkpointing)
    weight = memory.HALF if on_gpu else memory.FLOAT
    beams = BATCH_OF_USERS * parameters["num_beams"]
    writing = memory.base(model, in_4bit, weight) + memory.generation(model, beams, longest, weight)
    lines = [
        f"Training will hold at most about {needs / 2**30:.1f} GiB in {'GPU ' * on_gpu}memory, and "
        f"generation about {writing / 2**30:.1f}; {free / 2**30:.1f} GiB are free now."
    ]
    if not on_gpu or needs <= free:
        return lines
    least = training.needs(longest, True)
    if least > total:
        smaller = "take a smaller model, "
        if in_full:
            smaller += "tuning: lora, "
        elif not in_4bit:
            smaller += "load_in_4bit, "
        raise GlossError(
            f"base model {parameters['base_model']} is too large for this GPU: training takes about "
            f"{least / 2**30:.1f} GiB with the smallest batch and gradient_checkpointing, and it has "
            f"{total / 2**30:.1f}; {smaller}a shorter max_length or a larger GPU (docs/gpu.md says what fits)"
        )
    texts = parameters["batch_size"] * parameters["gradient_accumulation"]
    if fit := training.fits(free, longest):
        return [
            *lines,
            f"That may not fit. -p batch_size {fit.batch_size} -p gradient_accumulation {texts // fit.batch_size} "
            f"-p gradient_checkpointing {str(fit.gradient_checkpointing).lower()} takes about "
            f"{fit.needs / 2**30:.1f} GiB.",
        ]
    return [*lines, "That may not fit while something else holds memory of this GPU; see nvidia-smi."]
