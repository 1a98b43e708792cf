from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.trajectory import (
    Denoising,
    FlowImageSegment,
    MaskedImageSegment,
    Prompt,
    Rollout,
    Sample,
    Sampling,
    Segment,
    Task,
    TextSegment,
    TokenImageSegment,
    Turn,
    Unmasking,
    load_segment,
)


def picture(seed: int) -> Tensor:
    return torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def segment(
    rows: int, width: int, seed: int = 0, kind: type[Segment] = TextSegment, **changed: object
) -> Segment:
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, object] = {
        "name": "verdict",
        "context": tuple(Prompt.of(f"row {i} of {seed}") for i in range(rows)),
        "tokens": torch.randint(2**40, (rows, width), generator=generator),
        "logp": -torch.rand(rows, width, generator=generator),
        "mask": torch.rand(rows, width, generator=generator) < 0.7,
        "sampling": Sampling(temperature=0.1 + 0.2, guidance=7.3, max_tokens=5),
    }
    return kind(**{**values, **changed})  # type: ignore[arg-type]


def same(one: Segment, two: Segment) -> bool:
    """Equal bit for bit, context and settings included."""
    about = (type(one), one.name, one.sampling) == (type(two), two.name, two.sampling)
    tensors = all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(one.tensors().values(), two.tensors().values(), strict=True)
    )
    return about and tensors and same_context(one.context, two.context)


def same_context(one: tuple[Prompt, ...], two: tuple[Prompt, ...]) -> bool:
    def plain(prompts: tuple[Prompt, ...]) -> list[object]:
        return [
            [
                (t.role, [p if isinstance(p, str) else (p.dtype, p.tolist()) for p in t.content])
                for t in p.turns
            ]
            for p in prompts
        ]

    return plain(one) == plain(two)


def test_rows_are_taken_in_the_given_order_from_every_field() -> None:
    whole = segment(4, 3)
    part = whole.rows([2, 0, 2])
    assert [p.text for p in part.context] == ["row 2 of 0", "row 0 of 0", "row 2 of 0"]
    for name in ("tokens", "logp", "mask"):
        assert torch.equal(getattr(part, name), torch.stack([getattr(whole, name)[i] for i in (2, 0, 2)]))
    assert len(part) == 3 and part.sampling == whole.sampling and part.name == whole.name


def test_joined_segments_are_padded_on_the_right_with_nothing() -> None:
    narrow, wide = segment(2, 3, seed=1), segment(1, 5, seed=2)
    joined = Segment.cat([narrow, wide])
    assert type(joined) is TextSegment and joined.tokens.shape == (3, 5)
    for name in ("tokens", "logp", "mask"):
        value = getattr(joined, name)
        assert torch.equal(value[:2, :3], getattr(narrow, name)) and torch.equal(
            value[2:], getattr(wide, name)
        )
        assert not value[:2, 3:].any() and value.dtype == getattr(wide, name).dtype
    assert [p.text for p in joined.context] == ["row 0 of 1", "row 1 of 1", "row 0 of 2"]
    assert same(joined.rows([2]), wide)


@pytest.mark.parametrize(
    "other",
    [
        segment(1, 3, name="second"),
        segment(1, 3, sampling=Sampling(temperature=0.9)),
        segment(1, 3, kind=TokenImageSegment),
    ],
    ids=["name", "settings", "kind"],
)
def test_segments_that_differ_are_not_joined(other: Segment) -> None:
    with pytest.raises(ValueError, match=r"cannot join segment '\w+' to 'verdict'"):
        Segment.cat([segment(1, 3), other])


@pytest.mark.parametrize("kind", [TextSegment, TokenImageSegment])
def test_saved_segments_come_back_bit_for_bit(kind: type[Segment], tmp_path: Path) -> None:
    shared = picture(0)
    view = torch.stack([picture(1), picture(2)]).permute(0, 2, 1, 3)[1]  # a view, and not contiguous
    context = (
        Prompt.of('Größe 🙂 \u2028 \\ "', shared),
        Prompt((Turn(role="system", content=()), Turn(role="user", content=(shared, "", shared)))),
        Prompt((Turn(role="assistant", content=("said",)), Turn(role="user", content=(view, "x")))),
    )
    written = segment(3, 4, context=context, kind=kind)
    written.logp[0, 0] = -1.17549435e-38 / 2  # a subnormal number survives as well
    written.save(tmp_path / "kept")
    assert same(load_segment(tmp_path / "kept"), written)
    changed = replace(written, context=(context[1], context[0], context[2]))
    assert not same(load_segment(tmp_path / "kept"), changed)


def test_a_dot_in_the_name_does_not_overwrite_another_segment(tmp_path: Path) -> None:
    first, second = segment(1, 2, seed=1), segment(1, 2, seed=2)
    first.save(tmp_path / "step_0.first")
    second.save(tmp_path / "step_0.second")
    assert same(load_segment(tmp_path / "step_0.first"), first)


@dataclass(frozen=True, kw_only=True)
class Ranked(TextSegment):
    """A kind with a recorded tensor more."""

    rank: Tensor


def test_a_kind_with_more_tensors_slices_and_joins_them_too() -> None:
    ranks = torch.arange(6).view(2, 3)
    whole = Ranked(**vars(segment(2, 3)), rank=ranks)
    assert torch.equal(whole.rows([1]).rank, ranks[1:])
    assert torch.equal(Ranked.cat([whole.rows([1]), whole.rows([0])]).rank, ranks.flip(0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logp": torch.zeros(2, 4)}, r"verdict\.logp is \(2, 4\), expected \(2, 3\)"),
        ({"mask": torch.ones(1, 3, dtype=torch.bool)}, r"verdict\.mask is \(1, 3\), expected \(2, 3\)"),
        ({"tokens": torch.zeros(5, 3)}, r"verdict\.tokens has 5 rows, expected 2"),
        (
            {"logp": torch.zeros(2, 3).bfloat16()},
            r"verdict\.logp is torch\.bfloat16, expected",
        ),
        ({"mask": torch.ones(2, 3)}, r"verdict\.mask is torch\.float32, expected torch\.bool"),
    ],
)
def test_misshapen_records_are_refused(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        segment(2, 3, **changed)


# -- masked pictures ---------------------------------------------------------------------------------
def masked_segment(
    rows: int, estimator: str = "exact", seed: int = 0, **changed: object
) -> MaskedImageSegment:
    """Five positions, three steps of which two are trained; numbers at random."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(9, (rows, 3 if estimator == "exact" else 0, 5), generator=generator)
    unmask = Unmasking(
        steps=3,
        order="confidence",
        order_temperature=0.1 + 0.2,
        estimator=estimator,  # type: ignore[arg-type]
        trained=2,
    )
    values: dict[str, object] = {
        "kind": MaskedImageSegment,
        "tokens": torch.randint(9, (rows, 5), generator=generator),
        "logp": -torch.rand(rows, 5 * (1 + draws.shape[1]), generator=generator),
        "mask": torch.rand(rows, 5 * (1 + draws.shape[1]), generator=generator) < 0.7,
        "commit": torch.randint(3, (rows, 5), generator=generator),
        "rank": torch.rand(rows, 5, generator=generator).argsort(1),
        "trained": torch.tensor([[0, 2]]).expand(rows, -1),
        "draws": draws,
        "sampling": Sampling(temperature=0.7, guidance=3.1, unmask=unmask, source_guidance=1.7),
    }
    made = segment(rows, 5, seed, **{**values, **changed})  # type: ignore[arg-type]
    assert isinstance(made, MaskedImageSegment)
    return made


@pytest.mark.parametrize(("estimator", "actions"), [("exact", 20), ("trajectory", 5), ("random_mask", 5)])
def test_masked_pictures_are_sliced_and_joined_in_every_field(estimator: str, actions: int) -> None:
    whole, other = masked_segment(4, estimator), masked_segment(2, estimator, seed=1)
    assert whole.actions == actions
    part = whole.rows([2, 0])
    for name, value in whole.tensors().items():
        assert torch.equal(getattr(part, name), value[[2, 0]])
    assert {"commit", "rank", "trained", "draws"} < set(whole.tensors())
    joined = MaskedImageSegment.cat([whole, other])
    assert same(joined.rows([4, 5]), other) and same(joined.rows(range(4)), whole)
    moved = whole.to("meta")
    assert all(value.device.type == "meta" for value in moved.tensors().values())


def test_masked_pictures_drawn_in_another_way_are_not_joined() -> None:
    with pytest.raises(ValueError, match="kind or settings differ"):
        MaskedImageSegment.cat([masked_segment(1, "trajectory"), masked_segment(1, "random_mask")])


@pytest.mark.parametrize("estimator", ["exact", "trajectory"])
def test_saved_masked_pictures_come_back_bit_for_bit(estimator: str, tmp_path: Path) -> None:
    written = masked_segment(3, estimator)
    written.save(tmp_path / "kept")
    found = load_segment(tmp_path / "kept")
    assert same(found, written) and found.sampling.unmask == written.sampling.unmask != Unmasking()
    assert not same(found, replace(written, rank=written.rank.flip(1)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"commit": torch.zeros(2, 4)}, r"verdict\.commit has 4 positions, expected 5"),
        ({"rank": torch.zeros(2, 6)}, r"verdict\.rank has 6 positions, expected 5"),
        ({"draws": torch.zeros(2, 3, 4)}, r"verdict\.draws has 4 positions, expected 5"),
        ({"draws": torch.zeros(2, 2, 5)}, r"verdict\.logp is \(2, 20\), expected \(2, 15\)"),
        ({"trained": torch.zeros(1, 2)}, r"verdict\.trained has 1 rows, expected 2"),
    ],
)
def test_misshapen_records_of_masked_pictures_are_refused(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        masked_segment(2, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "unmask.steps must be at least 1, got 0"),
        ({"steps": 4, "trained": 5}, r"unmask.trained must lie between 0 \(all\) and 4, got 5"),
        ({"trained": -1}, r"unmask.trained must lie between 0 \(all\) and 16, got -1"),
        ({"order_temperature": -0.5}, "unmask.order_temperature must be 0 or positive, got -0.5"),
        ({"order_temperature": float("nan")}, "unmask.order_temperature must be 0 or positive, got nan"),
    ],
)
def test_unmasking_that_cannot_be_done_is_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Unmasking(**changed)  # type: ignore[arg-type]


# -- denoised pictures -------------------------------------------------------------------------------
def flow_segment(rows: int, seed: int = 0, **changed: object) -> FlowImageSegment:
    """A latent of 2 x 3 in four steps, of which two are drawn; numbers at random."""
    random = torch.Generator().manual_seed(seed)
    denoise = Denoising(steps=4, noise="cps", level=0.1 + 0.2, shift=1.7, window=2, moves="random", hold=3)
    values: dict[str, object] = {
        "name": "picture",
        "context": tuple(Prompt.of(f"row {i} of {seed}") for i in range(rows)),
        "latents": torch.randn(rows, 5, 2, 3, generator=random),
        "sigmas": torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0]).expand(rows, -1),
        "trained": torch.randint(2, (rows, 1), generator=random) + torch.arange(2),
        "means": torch.randn(rows, 2, 2, 3, generator=random),
        "logp": -torch.rand(rows, 2, generator=random),
        "mask": torch.rand(rows, 2, generator=random) < 0.7,
        "sampling": Sampling(guidance=3.5, denoise=denoise),
    }
    return FlowImageSegment(**{**values, **changed})  # type: ignore[arg-type]


def test_denoised_pictures_are_sliced_and_joined_in_every_field() -> None:
    whole, other = flow_segment(4), flow_segment(2, seed=1)
    assert whole.actions == 2 and "tokens" not in whole.tensors()
    part = whole.rows([2, 0])
    for name, value in whole.tensors().items():
        assert torch.equal(getattr(part, name), value[[2, 0]])
    assert {"latents", "sigmas", "trained", "means"} < set(whole.tensors())
    joined = FlowImageSegment.cat([whole, other])
    assert same(joined.rows([4, 5]), other) and same(joined.rows(range(4)), whole)
    assert all(value.device.type == "meta" for value in whole.to("meta").tensors().values())
    slower = replace(other, sampling=Sampling(denoise=Denoising(steps=4)))
    with pytest.raises(ValueError, match="kind or settings differ"):
        FlowImageSegment.cat([whole, slower])


def test_saved_denoised_pictures_come_back_bit_for_bit(tmp_path: Path) -> None:
    written = flow_segment(3)
    written.save(tmp_path / "kept")
    found = load_segment(tmp_path / "kept")
    assert same(found, written) and found.sampling.denoise == written.sampling.denoise != Denoising()
    assert not same(found, replace(written, means=written.means.flip(1)))
    still = flow_segment(2, trained=torch.zeros(2, 0), means=torch.zeros(2, 0, 2, 3), **nothing_drawn(2))
    still.save(tmp_path / "still")
    assert same(load_segment(tmp_path / "still"), still)


def nothing_drawn(rows: int) -> dict[str, Tensor]:
    return {"logp": torch.zeros(rows, 0), "mask": torch.zeros(rows, 0, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sigmas": torch.zeros(2, 4)}, r"picture\.sigmas is \(2, 4\), expected \(2, 5\)"),
        ({"means": torch.zeros(2, 3, 2, 3)}, r"picture\.means is \(2, 3, 2, 3\), expected \(2, 2, 2, 3\)"),
        ({"trained": torch.zeros(2, 3)}, r"picture\.logp is \(2, 2\), expected \(2, 3\)"),
        ({"latents": torch.zeros(2, 5, 2, 3).bfloat16()}, r"picture\.latents is torch\.bfloat16, expected"),
    ],
)
def test_misshapen_records_of_denoised_pictures_are_refused(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        flow_segment(2, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0, "noise": "ode"}, "denoise.steps must be at least 1 with 'ode', got 0"),
        ({"steps": 1}, "denoise.steps must be at least 2 with 'flow', got 1"),
        ({"window": 10}, r"denoise.window must lie between 0 \(all\) and 9, got 10"),
        ({"window": -1}, r"denoise.window must lie between 0 \(all\) and 9, got -1"),
        ({"level": 0.0}, "denoise.level must be positive with 'flow', got 0.0"),
        ({"level": float("nan"), "noise": "dance"}, "denoise.level must be positive with 'dance', got nan"),
        ({"level": float("inf")}, "denoise.level must be positive with 'flow', got inf"),
        ({"level": 1.1, "noise": "cps"}, "denoise.level must be above 0 and at most 1 with 'cps', got 1.1"),
        ({"shift": 0.0}, "denoise.shift must be positive, got 0.0"),
        ({"hold": 0}, "denoise.hold must be at least 1, got 0"),
        ({"window": 3, "first": 7}, "denoise.first must leave the window before the last step, got 7"),
        ({"first": 1}, "denoise.first must leave the window before the last step, got 1"),
        ({"noise": "ode", "window": 2}, "denoise.noise 'ode' draws at no step: leave window and start"),
        ({"noise": "ode", "start": "shared"}, "denoise.noise 'ode' draws at no step: leave window and start"),
        ({"noise": "sde"}, "denoise.noise must be flow, dance, cps or ode, got 'sde'"),
    ],
)
def test_denoising_that_cannot_be_done_is_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Denoising(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 .greedy. or positive, got -0.1"),
        ({"guidance": -1.0}, "guidance must be 0 or positive, got -1.0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": float("nan")}, "temperature must be 0 .greedy. or positive, got nan"),
        ({"guidance": float("nan")}, "guidance must be 0 or positive, got nan"),
        ({"temperature": float("inf")}, "temperature must be 0 .greedy. or positive, got inf"),
        ({"source_guidance": -1.0}, "source_guidance must be 0 or positive, got -1.0"),
        ({"source_guidance": float("nan")}, "source_guidance must be 0 or positive, got nan"),
    ],
)
def test_settings_that_make_no_policy_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**changed)  # type: ignore[arg-type]


def test_a_prompt_gives_its_text_and_pictures_in_reading_order() -> None:
    one, two = picture(1), picture(2)
    prompt = Prompt(
        (Turn(role="user", content=("see", one, "and")), Turn(role="assistant", content=(two, "so")))
    )
    assert prompt.text == "see and so"
    assert [p.tolist() for p in prompt.pictures] == [one.tolist(), two.tolist()]


def test_a_reply_goes_on_with_the_conversation_and_leaves_the_prompt_as_it_was() -> None:
    asked = Prompt.of(picture(1), "see")
    replied = asked.replied("so")
    assert replied.turns == (*asked.turns, Turn(role="assistant", content=("so",)))
    assert len(asked.turns) == 1


def rollout(rows: int, seed: int) -> Rollout:
    tasks = [Task(id=f"t{seed}/{i}", prompt="") for i in range(rows)]
    return Rollout(
        groups=tuple(task.id for task in tasks),
        segments={"a": segment(rows, 2 + seed, seed), "b": segment(rows, 3, seed, TokenImageSegment)},
        samples=tuple(Sample(task=t, texts={}, pictures={}, completion=t.id) for t in tasks),
    )


def test_rollouts_are_sliced_and_joined_row_by_row_in_every_part() -> None:
    joined = Rollout.cat([rollout(2, 0), rollout(3, 1)])
    assert len(joined) == 5 and joined.segments["a"].tokens.shape == (5, 3)
    assert type(joined.segments["b"]) is TokenImageSegment
    part = joined.rows([3, 1])
    assert part.groups == ("t1/1", "t0/1")
    assert [s.completion for s in part.samples] == ["t1/1", "t0/1"]
    assert [p.text for p in part.segments["b"].context] == ["row 1 of 1", "row 1 of 0"]
    assert same(part.segments["a"].rows([0]), rollout(3, 1).segments["a"].rows([1]))
