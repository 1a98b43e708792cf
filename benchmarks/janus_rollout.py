"""Images per second: our rollout against transformers' own ``generate(generation_mode="image")``.

Same weights, same prompts, same guidance, temperature 1; runs alternate, so both see the same machine. Ours
also records the log-probabilities that training needs; theirs returns none. Decoding to pixels is left out
of both.

    python benchmarks/janus_rollout.py [--size starter|100m] [--batch 32] [--guidance 5] [--runs 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import GenerationConfig

from triptych.models.janus import JanusModel
from triptych.models.tiny import TinyJanus, tiny_janus
from triptych.recipes import shapes_world
from triptych.trajectory import NoiseKey, Prompt, Sampling

SIZES = {
    "starter": TinyJanus(),
    "100m": TinyJanus(width=768, layers=12, heads=12, hidden=2048, vision_width=64, vision_layers=1),
}


def ours(model: JanusModel, texts: list[str], guidance: float) -> None:
    keys = [NoiseKey(0, 0, text, i, "image") for i, text in enumerate(texts)]
    model.generate_image([Prompt.of(t) for t in texts], Sampling(guidance=guidance), keys)


def theirs(model: JanusModel, texts: list[str], guidance: float) -> None:
    ids, valid = model._ids([Prompt.of(t) for t in texts], draw=True)
    settings = GenerationConfig(
        do_sample=True,
        guidance_scale=guidance,
        max_length=ids.shape[1] + model.draw_tokens,
        bos_token_id=model.tokenizer.bos_token_id,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    settings.generation_kwargs = {"boi_token_id": model.begin_image}
    model.network.generate(
        input_ids=ids, attention_mask=valid.long(), generation_mode="image", generation_config=settings
    )


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fastest_attention(model: JanusModel, run: Callable[[], None]) -> str:
    """Of the two kernels, the one that is faster for this sampler: each is measured at its best."""
    times = {}
    for name in ("sdpa", "eager"):
        model.set_attention(name)
        run()
        times[name] = min(seconds(run) for _ in range(2))
    return min(times, key=lambda name: times[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="starter")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    model = tiny_janus(shapes_world.words(), SIZES[asked.size])
    texts = [str(task.prompt) for task in shapes_world.test_tasks(360)[:: 360 // asked.batch]][: asked.batch]
    millions = sum(p.numel() for p in model.network.model.language_model.parameters()) / 1e6
    print(
        f"language model {millions:.1f}M, batch {len(texts)}, {model.draw_tokens} tokens, "
        f"guidance {asked.guidance:g}, {torch.get_num_threads()} threads"
    )
    samplers = {"ours": ours, "theirs": theirs}
    runs = {name: partial(run, model, texts, asked.guidance) for name, run in samplers.items()}
    best = {name: fastest_attention(model, run) for name, run in runs.items()}
    print(f"attention, the faster for each: ours {best['ours']}, transformers {best['theirs']}")
    pairs = []
    for _ in range(asked.runs):
        times = []
        for name, run in runs.items():
            model.set_attention(best[name])
            times.append(seconds(run))
        pairs.append(times)
    print(f"{'run':>4} {'ours img/s':>11} {'transformers img/s':>19} {'ratio':>6}")
    for i, (a, b) in enumerate(pairs):
        print(f"{i:>4} {len(texts) / a:>11.2f} {len(texts) / b:>19.2f} {b / a:>6.2f}")
    ratios = [b / a for a, b in pairs]
    print(f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
