"""Small random Janus models, their prompts, and statistics that several tests share.

The models are random but not flat: weights are drawn so that every next token depends clearly on the
prompt and on the tokens before it. Flat ones would let a shifted or unguided policy pass.
"""

from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor
from transformers import JanusForConditionalGeneration

from triptych.models.janus import JanusModel
from triptych.models.patch_codec import PatchCodec
from triptych.models.tiny import TinyJanus, tiny_janus
from triptych.trajectory import NoiseKey, Prompt

WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "draw",
    "two",
    "what",
    "is",
    "this",
    "?",
    "yes",
    "no",
]
SIDE, PATCH, CODES = 8, 4, 6


def sizes(code_width: int) -> TinyJanus:
    return TinyJanus(
        width=16,
        layers=2,
        heads=2,
        hidden=24,
        vision_width=16,
        vision_layers=1,
        side=SIDE,
        patch=PATCH,
        codes=CODES,
        code_width=code_width,
        spare_words=2,
    )


def starter_janus(seed: int = 0) -> JanusModel:
    """A Janus as starters are: its pictures are patches of a dictionary."""
    codebook = torch.rand(CODES, 3 * PATCH * PATCH, generator=torch.Generator().manual_seed(seed))
    return lively(tiny_janus(WORDS, sizes(3 * PATCH * PATCH), PatchCodec(codebook), seed), seed)


def public_janus(seed: int = 0) -> JanusModel:
    """A Janus in the public layout: with its VQ tokenizer, and a language head of its own."""
    tied = tiny_janus(WORDS, sizes(8), None, seed)
    config = tied.network.config
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return lively(JanusModel(JanusForConditionalGeneration(config), tied.tokenizer), seed)


@torch.no_grad()
def lively(model: JanusModel, seed: int = 0) -> JanusModel:
    """Redraw all weights with unit gain, so that logits spread by about one nat."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.network.named_parameters():
        if ".vqmodel." in name or "norm" in name:
            continue
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(noise / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.3 * noise)
    if model.network.config.tie_word_embeddings:
        model.network.model.language_model.norm.weight.mul_(0.5)
    model.network.lm_head.weight[model.end] = 0  # its logit is 0 everywhere, so texts end now and then
    model.network.model.generation_embeddings.weight.mul_(3)
    model.network.model.generation_head.vision_head.weight.mul_(2)
    return model


def picture(seed: int, side: int = SIDE) -> Tensor:
    """A random picture, uint8 ``[side, side, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (side, side, 3), generator=generator).to(torch.uint8)


def mixed_prompts() -> list[Prompt]:
    """Long and short, with no, one and two pictures: what padding and picture plumbing must survive."""
    return [
        Prompt.of("a red circle"),
        Prompt.of(picture(1), "what is this ?"),
        Prompt.of("draw"),
        Prompt.of(picture(2), "a", picture(3), "two"),
        Prompt.of("draw two red circle a blue square no yes green square is this red ?"),
    ]


def keys(n: int, segment: str = "image", seed: int = 0) -> list[NoiseKey]:
    return [NoiseKey(seed, 0, "task", i, segment) for i in range(n)]


def chi_square(counts: Tensor, probabilities: Tensor, least: float = 5.0) -> float:
    """The p-value of ``counts`` under ``probabilities``; cells that expect less than ``least`` are pooled."""
    assert counts.shape == probabilities.shape
    assert abs(float(probabilities.sum()) - 1) < 1e-5, "the reference is no distribution"
    expected = probabilities.double() * counts.sum()
    rare = expected < least
    pairs = [(float(c), float(e)) for c, e in zip(counts[~rare], expected[~rare], strict=True)]
    if rare.any():
        pairs.append((float(counts[rare].sum()), float(expected[rare].sum())))
    statistic = sum((c - e) ** 2 / e for c, e in pairs if e > 0)
    assert all(c == 0 for c, e in pairs if e == 0), "something impossible was drawn"
    return float(stats.chi2.sf(statistic, len(pairs) - 1))


def joint_index(tokens: Tensor, base: int) -> Tensor:
    """Each row of ``tokens [B, A]`` read as a number in base ``base``."""
    place = base ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens * place).sum(1)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Softmax written out once more, in float64 and without the kernel."""
    scaled = logits.double() / temperature
    scaled = scaled - scaled.max(-1, keepdim=True).values
    return scaled - scaled.exp().sum(-1, keepdim=True).log()


def as_text(prompt: Prompt, draw: bool, read_tokens: int) -> str:
    """Janus' conversation format, one user message: written from the published template."""
    seen = "<begin_of_image>" + "<image_placeholder>" * read_tokens + "<end_of_image>"
    parts: Sequence[str | Tensor] = prompt.turns[0].content
    said = "\n".join(part if isinstance(part, str) else seen for part in parts)
    return f"<|User|>: {said}\n\n<|Assistant|>:" + ("<begin_of_image>" if draw else "")


@torch.no_grad()
def plain_logits(
    model: JanusModel, prompt: Prompt, actions: Tensor, *, draw: bool, guidance: float = 1.0
) -> Tensor:
    """Logits of every action ``[M, A, V]`` for one prompt and M recorded sequences ``[M, A]``.

    Straight through transformers: one unpadded prompt, no cache, a plain forward of the language model.
    """
    network, tokenizer = model.network, model.tokenizer
    ids = tokenizer(as_text(prompt, draw, model.read_tokens), return_tensors="pt")["input_ids"]
    m, length = actions.shape[0], ids.shape[1]
    embeds = network.get_input_embeddings()(ids)
    if prompt.pictures:
        pixels = torch.stack([p.permute(2, 0, 1).float() / 127.5 - 1 for p in prompt.pictures])
        features = network.model.get_image_features(pixels.to(network.dtype)).pooler_output
        embeds[0, ids[0] == tokenizer.convert_tokens_to_ids("<image_placeholder>")] = features.flatten(0, 1)
    keep = [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<begin_of_image>")]
    blank = [[i if i in keep else tokenizer.pad_token_id for i in ids[0].tolist()]]
    embed = network.prepare_embeddings_for_image_generation if draw else network.get_input_embeddings()
    head = network.model.generation_head if draw else network.lm_head

    def branch(prefix: Tensor) -> Tensor:
        whole = torch.cat([prefix.expand(m, -1, -1), embed(actions)], dim=1)
        hidden = network.model.language_model(inputs_embeds=whole, use_cache=False).last_hidden_state
        result: Tensor = head(hidden[:, length - 1 : -1])
        return result

    conditional = branch(embeds)
    if guidance == 1:
        return conditional
    unconditional = branch(network.get_input_embeddings()(torch.tensor(blank)))
    return unconditional + guidance * (conditional - unconditional)
