"""Rows of token ids: padded to one width, read back as text, recorded as what should follow a prompt.

Shared by every model with a tokenizer; knows no model, no picture and no sequence format.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triptych.errors import UserError
from triptych.kernels.noise import uniforms
from triptych.models.base import Example
from triptych.trajectory import Prompt, Sampling, TextSegment


def padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, side: str = "left"
) -> tuple[Tensor, Tensor]:
    """Ids ``[B, P]`` filled up with ``pad`` at one side, and which of them count ``[B, P]``."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    wide = partial(pad_sequence, batch_first=True, padding_side=side)
    valid = wide([torch.ones_like(row, dtype=torch.bool) for row in ids])
    return wide(ids, padding_value=pad).to(device), valid.to(device)


def distinct(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[int] | None]:
    """The different prompts, and which of them each row has; None where no two are alike.

    Rows of a group have one, and so have all unconditional rows. Pictures are alike that are the same object.
    """
    first: dict[object, int] = {}
    found: list[Prompt] = []
    rows = []
    for prompt in prompts:
        said = tuple((t.role, *(p if isinstance(p, str) else id(p) for p in t.content)) for t in prompt.turns)
        if said not in first:
            first[said] = len(found)
            found.append(prompt)
        rows.append(first[said])
    return found, rows if len(found) < len(rows) else None


def words(tokenizer: Any, text: str) -> list[int]:
    """A text's ids, without the tokenizer's own begin or end."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def mark(tokenizer: Any, text: str, title: str) -> int:
    """The id of one of the marks that a tokenizer of ``title`` has."""
    token = tokenizer.convert_tokens_to_ids(text)
    if not isinstance(token, int) or token == tokenizer.unk_token_id:
        raise UserError(f"the tokenizer has no {text!r}: this is not a {title} tokenizer")
    return token


def texts(tokenizer: Any, segment: TextSegment) -> list[str]:
    """The written strings, up to the end token; ids that the tokenizer lacks (of pictures) say nothing."""
    rows = [t[m].tolist() for t, m in zip(segment.tokens.cpu(), segment.mask.cpu(), strict=True)]
    said = [[token for token in row if token < len(tokenizer)] for row in rows]
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in said]


def answers(tokenizer: Any, examples: Sequence[Example], end: int, device: torch.device) -> TextSegment:
    """The examples' texts with their end token, as if they had been written."""
    rows = [[*words(tokenizer, str(e.target)), end] for e in examples]
    return TextSegment(**as_recorded(examples, *padded(rows, 0, device, "right")))


def answer_count(tokenizer: Any, examples: Sequence[Example]) -> int:
    """How many actions :func:`answers` has: every text's words, and its end token."""
    return sum(len(words(tokenizer, e.target)) + 1 for e in examples if isinstance(e.target, str))


def as_recorded(examples: Sequence[Example], ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """What segments of any kind share, of targets ``ids [B, A]`` that count where ``mask [B, A]``."""
    return {
        "name": "target",
        "context": tuple(e.prompt for e in examples),
        "tokens": ids,
        "logp": torch.zeros(ids.shape, device=ids.device),
        "mask": mask,
        "sampling": Sampling(),
    }


def times(examples: Sequence[Example]) -> Tensor:
    """How little is hidden of what each is to draw, ``[B]``; drawn first of its key where it does not say."""
    drawn = uniforms([e.key for e in examples], 1)[:, 0].tolist()
    found = [u if e.time is None else e.time for e, u in zip(examples, drawn, strict=True)]
    return torch.tensor(found, dtype=torch.float64)
