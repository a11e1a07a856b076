"""Writing queries: the fine-tuned model continues each user's prompt with titles of likely next items (METHOD, 3)."""

import pandas as pd
import torch
from peft import PeftModel
from tqdm import tqdm

from gloss_utils import prompts
from gloss_utils.models import TINY, load_base
from gloss_utils.run_folder import Run


def load_model(run: Run):
    """The base model that stage 2 used, with its adapter, for inference; and the tokenizer."""
    base = run.folder.base if run["base_model"] == TINY else run["base_model"]
    model, tokenizer = load_base(base, run["load_in_4bit"])
    if run["load_in_4bit"] and not torch.cuda.is_available():
        # The same weights, unpacked once rather than at every step: without a GPU, that is what takes the time.
        model = model.dequantize()
    model = PeftModel.from_pretrained(model, run.folder.adapter).eval()
    if not torch.cuda.is_available():
        model = model.merge_and_unload()
    return model, tokenizer


def beam_search(
    model, tokenizer, inputs: list[list[int]], num_beams: int, max_new_tokens: int, batch_size: int
) -> pd.DataFrame:
    """Continue each prompt (token ids) with `num_beams` texts by beam search, best first.

    Returns a frame with a row a prompt, in the order given: texts, logprobs (sum over a text's tokens, end of sequence
    included, natural log), lengths (in tokens, likewise).
    """
    tokenizer.padding_side = "left"
    order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
    rows = [None] * len(inputs)
    with tqdm(total=len(inputs), desc="generating", unit="user", mininterval=2) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            padded = tokenizer.pad({"input_ids": [inputs[i] for i in batch]}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                found = model.generate(
                    **padded,
                    num_beams=num_beams,
                    num_return_sequences=num_beams,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    length_penalty=1.0,
                    output_scores=True,
                    return_dict_in_generate=True,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = found.sequences[:, padded["input_ids"].shape[1] :]
            lengths = _lengths(new, tokenizer.eos_token_id)
            # With length penalty 1, transformers' score is the mean log-probability of the tokens.
            logprobs = found.sequences_scores.double().cpu() * lengths if num_beams > 1 else _greedy(found, lengths)
            texts = [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
            for row, i in enumerate(batch):
                part = slice(row * num_beams, (row + 1) * num_beams)
                rows[i] = (texts[part], logprobs[part].tolist(), lengths[part].tolist())
            bar.update(len(batch))
    return pd.DataFrame(rows, columns=["texts", "logprobs", "lengths"])


def _lengths(new: torch.Tensor, end: int) -> torch.Tensor:
    """Tokens of each row up to and including the first end-of-sequence token."""
    ended = (new == end).cpu()
    return torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])


def _greedy(found, lengths: torch.Tensor) -> torch.Tensor:
    """Sums of log-probabilities of greedy texts, which transformers does not return."""
    best = torch.stack([scores.double().log_softmax(-1).max(-1).values for scores in found.scores], 1).cpu()
    return (best * (torch.arange(best.shape[1]) < lengths[:, None])).sum(1)


def queries(run: Run, examples: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    """Generate every example's queries: the examples (user, history, target) with texts, logprobs, lengths."""
    model, tokenizer = load_model(run)
    histories = [[titles[item] for item in history] for history in examples["history"]]
    inputs = prompts.encode_prompts(tokenizer, histories, run["max_length"] - run["max_new_tokens"])
    found = beam_search(model, tokenizer, inputs, run["num_beams"], run["max_new_tokens"], run["generation_batch_size"])
    return pd.concat([examples.reset_index(drop=True), found], axis=1)
