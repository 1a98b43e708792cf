"""Small random models, their prompts, and statistics that several tests share.

The models are random but not flat: weights are drawn so that every next token depends clearly on the
prompt and on the tokens before it. Flat ones would let a shifted or unguided policy pass.
"""

from collections.abc import Callable, Sequence
from math import ceil, prod

import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from triptych.models.janus import JanusModel
from triptych.models.magvit2 import MagViT2Codec, MagViT2Sizes
from triptych.models.masked_model import MaskedModel
from triptych.models.patch_codec import PatchCodec
from triptych.models.showo import ShowoModel
from triptych.models.tiny import TinyJanus, TinyShowo, TinyUniGen, tiny_janus, tiny_showo, tiny_unigen
from triptych.models.unigen import UniGenModel
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


# -- Show-o: 16 tokens of 2 x 2 pixels, the marks of the public tokenizer ------------------------------
def showo_sizes(codes: int, local: bool) -> TinyShowo:
    return TinyShowo(
        width=16, layers=2, heads=2, hidden=24, side=SIDE, patch=2, codes=codes, spare_words=2, local=local
    )


def starter_showo(seed: int = 0) -> ShowoModel:
    """A Show-o as starters are: a dictionary of patches, and convolutions over the canvas."""
    codebook = torch.rand(CODES, 12, generator=torch.Generator().manual_seed(seed))
    return lively_showo(tiny_showo(WORDS, showo_sizes(CODES, local=True), PatchCodec(codebook), seed), seed)


def public_showo(seed: int = 0) -> ShowoModel:
    """A Show-o in the public layout: a small MAGViT-v2 of 8 codes, and nothing local."""
    return lively_showo(tiny_showo(WORDS, showo_sizes(8, local=False), tiny_magvit(seed), seed), seed)


def tiny_magvit(seed: int = 0) -> MagViT2Codec:
    """A MAGViT-v2 of 8 codes, one for 2 x 2 pixels."""
    one = {"encoder_multipliers": (1, 1), "decoder_multipliers": (1, 1)}
    blocks = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MagViT2Codec(MagViT2Sizes(bits=3, channels=4, groups=2, **one, **blocks))


@torch.no_grad()
def lively_showo(model: ShowoModel, seed: int = 0) -> ShowoModel:
    """Redraw all weights, so that logits spread by about one nat."""
    redraw(model, seed)
    model.network.showo.lm_head.bias[model.end] = 1.0  # so texts end now and then
    return model


@torch.no_grad()
def redraw(model: MaskedModel, seed: int) -> None:
    """New weights with unit gain; norms only a little changed."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.network.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.add_(0.2 * noise)
        else:
            weight.copy_(noise / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.3 * noise)


def draw_prompts() -> list[Prompt]:
    """Long and short, and one that says nothing."""
    texts = ["a red circle", "draw", "draw two red circle a blue square no yes green square", "", "a square"]
    return [Prompt.of(text) for text in texts]


def read_prompts() -> list[Prompt]:
    """Long and short questions, with a picture and without."""
    return [
        Prompt.of(picture(1), "what is this ?"),
        Prompt.of("draw"),
        Prompt.of(picture(2), "is this a red circle ? yes no two blue green"),
        Prompt.of(picture(3), ""),
        Prompt.of("what is a square ?"),
    ]


def plain_rows(model: MaskedModel, embeds: Tensor, allowed: Tensor, first: int | None) -> Tensor:
    """Logits ``[M, L, V]`` of whole rows ``embeds [M, L, D]``: the language model's own forward, a 4-D mask.

    ``allowed [L, L]`` says which column a row sees. Tokens of a picture begin at column ``first``: there
    locality is put in by hooks, as a sum over nine neighbours.
    """
    lm, length = model.network.lm, embeds.shape[1]
    side = round(model.draw_tokens**0.5)

    def mixed(weight: Tensor, hidden: Tensor) -> Tensor:
        assert first is not None
        place = slice(first, first + side * side)
        image = hidden[:, place].unflatten(1, (side, side))
        wide = torch.zeros(len(hidden), side + 2, side + 2, hidden.shape[2]).to(image)
        wide[:, 1:-1, 1:-1] = image
        near = sum(
            wide[:, i : i + side, j : j + side] * weight[:, 0, i, j] for i in range(3) for j in range(3)
        )
        result = hidden.clone()
        result[:, place] = (image + near).flatten(1, 2)
        return result

    def hook(weight: Tensor) -> Callable[..., tuple[Tensor]]:
        return lambda _, inputs: (mixed(weight, inputs[0]),)

    local = model.network.local if first is not None and model.network.local is not None else []
    hooks = [
        layer.register_forward_pre_hook(hook(mixer.weight))
        for layer, mixer in zip(lm.model.layers, local, strict=False)
    ]
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    logits: Tensor = lm(
        inputs_embeds=embeds,
        attention_mask=mask.expand(len(embeds), 1, length, length),
        position_ids=torch.arange(length)[None],
        use_cache=False,
    ).logits
    for each in hooks:
        each.remove()
    return logits


def plain_canvas(
    model: ShowoModel, text: str, tokens: Tensor, masked: Tensor, guidance: float = 1.0
) -> Tensor:
    """Logits ``[M, N, K]`` over codes for M canvases of one prompt, from the sequence as published."""
    ident = model.tokenizer.convert_tokens_to_ids
    canvas = torch.where(masked, model.layout.vocab_size - 1, tokens + len(model.tokenizer))

    def branch(said: str) -> Tensor:
        words = model.tokenizer(said, add_special_tokens=False)["input_ids"]
        before = [ident("<|t2i|>"), ident("<s>"), *words, ident("</s>"), ident("<|soi|>")]
        m = len(tokens)
        ends = [torch.tensor([before]).expand(m, -1), torch.tensor([[ident("<|eoi|>")]]).expand(m, -1)]
        ids = torch.cat([ends[0], canvas, ends[1]], dim=1)
        allowed = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        allowed[len(before) - 1 :] = True
        logits = plain_rows(model, model.network.showo.model.embed_tokens(ids), allowed, len(before))
        return logits[:, len(before) : -1, len(model.tokenizer) : model.layout.vocab_size - 1]

    conditional = branch(text)
    if guidance == 1:
        return conditional
    unconditional = branch("")
    return unconditional + guidance * (conditional - unconditional)


def plain_answer(model: ShowoModel, prompt: Prompt, tokens: Tensor) -> Tensor:
    """Logits ``[A, V]`` that predict the answer ``tokens [A]``, from the sequence as published."""
    ident = model.tokenizer.convert_tokens_to_ids
    seen: list[int] = []
    if prompt.pictures:
        image = prompt.pictures[0].permute(2, 0, 1)[None].float() / 255
        codes = (model.codec.encode(image)[0] + len(model.tokenizer)).tolist()
        seen = [ident("<|mmu|>"), ident("<|soi|>"), *codes, ident("<|eoi|>")]
    said = f"USER: \n{prompt.text} ASSISTANT:"
    words = model.tokenizer(said, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*seen, ident("<s>"), *words, *tokens.tolist()]])
    allowed = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
    allowed[:, : len(seen)] = True
    embeds = model.network.showo.model.embed_tokens(ids)
    logits = plain_rows(model, embeds, allowed, 2 if seen else None)
    return logits[0, -len(tokens) - 1 : -1]


# -- UniGen: Show-o's sizes, and a tower of one layer over 16 patches at most ----------------------------
def unigen_sizes(codes: int, local: bool) -> TinyUniGen:
    return TinyUniGen(**vars(showo_sizes(codes, local)), vision_width=8, vision_layers=1)


def starter_unigen(seed: int = 0) -> UniGenModel:
    """A UniGen as starters are: a dictionary of patches, and convolutions over the canvas."""
    codebook = torch.rand(CODES, 12, generator=torch.Generator().manual_seed(seed))
    return lively_unigen(
        tiny_unigen(WORDS, unigen_sizes(CODES, local=True), PatchCodec(codebook), seed), seed
    )


def public_unigen(seed: int = 0) -> UniGenModel:
    """A UniGen of public parts: a small MAGViT-v2, and nothing local."""
    return lively_unigen(tiny_unigen(WORDS, unigen_sizes(8, local=False), tiny_magvit(seed), seed), seed)


@torch.no_grad()
def lively_unigen(model: UniGenModel, seed: int = 0) -> UniGenModel:
    """Redraw all weights, so that logits spread by about one nat."""
    redraw(model, seed)
    model.network.llm.lm_head.weight[model.end] *= 2  # so texts end now and then
    return model


def oblong(seed: int, height: int, width: int) -> Tensor:
    """A random picture of any shape."""
    return picture(seed, max(height, width))[:height, :width].contiguous()


def edit_prompts() -> list[Prompt]:
    """Drawings and edits side by side: long and short, sources of several shapes, one without a word."""
    return [
        Prompt.of("a red circle"),
        Prompt.of(picture(1), "draw two blue circle a green square no"),
        Prompt.of(oblong(2, 4, 16), "red"),
        Prompt.of(""),
        Prompt.of(oblong(3, 7, 3), ""),
    ]


def look_prompts() -> list[Prompt]:
    """Questions to pictures of several shapes, to two, and to none."""
    return [
        Prompt.of(picture(1), "what is this ?"),
        Prompt.of("draw"),
        Prompt.of(oblong(2, 4, 16), "is this a red circle ? yes no two blue green"),
        Prompt.of(oblong(3, 7, 3), picture(4), ""),
        Prompt.of("what is a square ?"),
    ]


def plain_features(model: UniGenModel, seen: Tensor) -> Tensor:
    """Projected features ``[n, D]`` of one picture: the largest grid of patches of its shape, unpadded."""
    size, most = 2, model.layout.max_num_patches
    sides = tuple(seen.shape[:2])
    scales = [k * size / side for side in sides for k in range(1, most + 1)]

    def grid(scale: float) -> list[int]:
        return [max(1, ceil(side * scale / size - 1e-9)) for side in sides]

    rows, columns = grid(max(s for s in scales if prod(grid(s)) <= most))
    image = Image.fromarray(seen.numpy()).resize((columns * size, rows * size), Image.Resampling.BILINEAR)
    pixels = torch.tensor(list(image.tobytes())).view(rows, size, columns, size, 3) / 127.5 - 1
    patches = pixels.permute(0, 2, 1, 3, 4).reshape(1, rows * columns, -1)
    tower = model.network.vision_tower
    hidden = tower.embeddings(patches, torch.tensor([[rows, columns]]))
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    first, _, last = model.network.mm_projector
    result: Tensor = last(nn.functional.gelu(first(hidden)))[0]
    return result


def plain_prefix(model: UniGenModel, prompt: Prompt, draw: bool) -> tuple[Tensor, Tensor]:
    """One unpadded prompt ``[P, D]``, and which of its columns are a picture's ``[P]``."""
    embed, parts, flags = model.network.llm.model.embed_tokens, [], []

    def add(ids: list[int], features: Tensor | None = None, flag: bool = False) -> None:
        middle = embed(torch.tensor(ids, dtype=torch.long)) if features is None else features
        ends = [
            embed(torch.tensor([model.tokenizer.convert_tokens_to_ids(m)])) for m in ("<|soi|>", "<|eoi|>")
        ]
        parts.append(torch.cat([ends[0], middle, ends[1]]) if flag else middle)
        flags.extend([flag] * len(parts[-1]))

    def say(text: str) -> None:
        add(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    if draw:
        say("<|im_start|><|t2i|>user\n")
    else:
        say("<|im_start|><|mmu|>" if prompt.pictures else "<|im_start|>")
    for source in prompt.pictures:
        add([], plain_features(model, source), True)
    if not draw:
        say("user\n")
    say(prompt.text)
    for source in prompt.pictures if draw else []:
        add((model._encode([source])[0] + len(model.tokenizer)).tolist(), None, True)
    say("<|im_end|>\n<|im_start|>assistant\n")
    return torch.cat(parts), torch.tensor(flags)


def plain_edit(
    model: UniGenModel,
    prompt: Prompt,
    tokens: Tensor,
    masked: Tensor,
    guidance: float = 1.0,
    source_guidance: float | None = None,
) -> Tensor:
    """Logits ``[1, N, K]`` over codes on the canvas ``tokens [1, N]`` of one prompt, all columns at once."""
    ident, first_code = model.tokenizer.convert_tokens_to_ids, len(model.tokenizer)
    drawn = torch.where(masked, model.layout.vocab_size - 1, tokens + first_code)[0].tolist()
    embed = model.network.llm.model.embed_tokens

    def branch(said: Prompt) -> Tensor:
        before, seen = plain_prefix(model, said, draw=True)
        whole = torch.cat([before, embed(torch.tensor([ident("<|soi|>"), *drawn, ident("<|eoi|>")]))])[None]
        allowed = torch.ones(whole.shape[1], whole.shape[1]).tril().bool()
        allowed[:, : len(before)] |= seen
        allowed[len(before) :] = True
        logits = plain_rows(model, whole, allowed, len(before) + 1)
        return logits[:, len(before) + 1 : -1, first_code : model.layout.vocab_size - 1]

    conditional = branch(prompt)
    if guidance == 1 and source_guidance is None:
        return conditional
    nothing, source = branch(Prompt.of("")), branch(Prompt.of(*prompt.pictures, ""))
    if source_guidance is None:
        return nothing + guidance * (conditional - nothing)
    return nothing + source_guidance * (source - nothing) + guidance * (conditional - source)


def plain_reply(model: UniGenModel, prompt: Prompt, tokens: Tensor) -> Tensor:
    """Logits ``[A, V]`` that predict the answer ``tokens [A]``, all columns at once."""
    before, seen = plain_prefix(model, prompt, draw=False)
    whole = torch.cat([before, model.network.llm.model.embed_tokens(tokens)])[None]
    allowed = torch.ones(whole.shape[1], whole.shape[1]).tril().bool()
    allowed[:, : len(before)] |= seen
    return plain_rows(model, whole, allowed, None)[0, -len(tokens) - 1 : -1]
