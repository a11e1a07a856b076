"""What exact log-probabilities of given texts cost, beside a beam search on the same prompts.

`python -m benchmarks.scoring`: the Llama of 15 M parameters of `benchmarks.generation` with random weights, 8 prompts
of 400 tokens, 100 texts of 15 tokens for each, which have only the first two tokens in common. Prints one JSON object:
`cost_ratio`, the time of scoring them divided by that of our search with five beams and as many new tokens as in
`benchmarks.generation`, and `cost_ratio_to_generate`, to that of transformers' `generate` with as many;
`largest_difference` to plain passes, over the texts of the first prompt. The same, with `among` before them, for
probabilities among a catalogue of all these texts, where only tokens that are open run.
"""

import argparse
import json
import random
import statistics

from benchmarks import generation, timing
from gloss_utils.language import models, scoring
from gloss_utils.language.trie import Trie


def new_texts(model, count: int, length: int, seed: int) -> list[list[int]]:
    """Texts of random tokens that begin alike and end with the end of sequence."""
    rng = random.Random(f"texts {seed}")
    draw = lambda: [rng.randrange(3, model.config.vocab_size) for _ in range(length - 3)]  # noqa: E731
    return [[3, 4, *draw(), generation.END] for _ in range(count)]


def main():
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=generation.SHAPES, default="15m")
    parser.add_argument("--length", type=int, default=400, help="tokens of a prompt")
    parser.add_argument("--texts", type=int, default=100, help="per user")
    parser.add_argument("--text-length", type=int, default=15, help="tokens of a text, its end included")
    parser.add_argument("--users", type=int, default=generation.USERS)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    model = generation.new_model(options.shape)
    texts = [new_texts(model, options.texts, options.text_length, user) for user in range(options.users)]
    prompts = {
        run: generation.new_prompts(model, options.length, run)[: options.users] for run in range(options.runs + 1)
    }
    trie = Trie(text for some in texts for text in some)
    expected = {
        "": scoring.plain(model, prompts[1][:1], texts[:1])[0],
        "among_": scoring.plain(model, prompts[1][:1], texts[:1], trie)[0],
    }
    packed = models.pack(model)
    seconds, answers = timing.alternate(
        {
            "scoring": lambda run: scoring.score(packed, prompts[run], texts),
            "among_scoring": lambda run: scoring.score(packed, prompts[run], texts, trie=trie),
            "search": lambda run: generation.ours(packed, prompts[run]),
            "generate": lambda run: generation.theirs(packed, prompts[run]),
        },
        options.runs,
    )
    print(
        json.dumps(
            {
                f"{kind}cost_ratio{to}": round(timing.ratio(seconds, rival, f"{kind}scoring"), 3)
                for kind in expected
                for to, rival in (("", "search"), ("_to_generate", "generate"))
            }
            | {
                f"{kind}largest_difference": max(
                    abs(one - two) for one, two in zip(answers[0][f"{kind}scoring"][0], scores, strict=True)
                )
                for kind, scores in expected.items()
            }
            | {
                "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
                "texts": options.texts,
                "device": timing.device(),
            }
        )
    )


if __name__ == "__main__":
    main()
