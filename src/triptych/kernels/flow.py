"""Denoising steps: a latent goes from noise to data, and a step that puts noise back is an action.

At noise level sigma (1 is noise, 0 is data) ``x = (1 - sigma) x0 + sigma eps``; the model gives the
velocity ``v = eps - x0``, and a step goes to sigma' by ``d = sigma' - sigma < 0``. Without noise ("ode")
``x' = x + v d``. With noise ``x' = mu + s z``, z standard normal:

- ``flow`` and ``dance``: Euler-Maruyama of the SDE that shares the ODE's marginals, ``s = g sqrt(-d)`` and
  ``mu = x (1 + g^2 d / (2 sigma)) + v (1 + g^2 (1 - sigma) / (2 sigma)) d``, where g is
  ``level sqrt(sigma / (1 - sigma))`` (Flow-GRPO, arXiv 2505.05470; at sigma = 1 the schedule's second sigma
  stands in the denominator) or ``level`` itself (DanceGRPO, arXiv 2505.07818).
- ``cps``: ``s = sigma' sin(level pi / 2)`` and ``mu = (1 - sigma') (x - sigma v) + sqrt(sigma'^2 - s^2)
  (x + (1 - sigma) v)``, so that data and noise keep their coefficients (arXiv 2509.05952).

The last step is never drawn. A step's log-probability is the MEAN over the latent's dimensions, as in the
field: its ratio is a geometric mean over them, and clip ranges are 1e-4 to 1e-5. The sum over n dimensions
would be n times as large, and its ratio the n-th power. No KL can be estimated from means; the closed form is
used.

How the marginals fare: the variance's error at the end, for data N(0.6, 0.25) and the exact velocity, in even
steps from sigma 0.9 (tests/kernels/test_flow.py asserts this table; the means are right). The SDE's falls as
1 / S, as the ODE's own does. CPS does not share the ODE's marginals: a bias stays, larger at higher levels.
From sigma 1 "dance" does as well; "flow" has +.0010 left at 640 steps, of the denominator that stands in.

    steps            10        40       160       640
    ode          -.0582    -.0160    -.0041    -.0010
    flow 0.7     -.0217    -.0072    -.0019    -.0005
    dance 0.3    -.0510    -.0137    -.0035    -.0009
    cps 0.3      -.0682    -.0297    -.0186    -.0153
    cps 0.7      -.1095    -.0828    -.0735    -.0702

Shape legend: B rows, S steps, A actions: the steps that are drawn; ... the latent's own dimensions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.kernels.noise import normals, uniforms
from triptych.trajectory import Denoising, FlowImageSegment, NoisedImageSegment, NoiseKey, Scores, Segment

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The velocity ``[B, ...]``, with guidance, at ``x [B, ...]`` fp32, ``sigma [B]`` and ``step [B]`` int64."""


def schedule(denoise: Denoising) -> Tensor:
    """Noise levels ``[S + 1]`` fp32 from 1 to 0: even times, shifted to ``shift t / (1 + (shift - 1) t)``."""
    return shifted(torch.linspace(1, 0, denoise.steps + 1, dtype=torch.float64), denoise.shift).float()


def shifted(time: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] moved to high noise by a ``shift`` above 1; 0 and 1 stay."""
    return shift * time / (1 + (shift - 1) * time)


def drawn_steps(keys: Sequence[NoiseKey], denoise: Denoising) -> Tensor:
    """The steps that are drawn, ``[B, A]`` int64 ascending; all samples of a group share them."""
    if denoise.noise == "ode":
        return torch.zeros(len(keys), 0, dtype=torch.long)
    width = denoise.window or denoise.steps - 1
    places = denoise.steps - width  # the window never reaches the last step
    if denoise.moves != "random":
        moved = [(key.step - 1) // denoise.hold if denoise.moves == "sliding" else 0 for key in keys]
        first = (denoise.first + torch.tensor(moved)) % places
    else:
        first = (uniforms(_shared(keys, "window"), 1)[:, 0] * places).long()
    return first[:, None] + torch.arange(width)


def _shared(keys: Sequence[NoiseKey], what: str) -> list[NoiseKey]:
    """Keys of what a group has in common."""
    return [replace(key, sample=0, segment=f"{key.segment}/{what}") for key in keys]


@dataclass(frozen=True)
class Noise:
    """All randomness of B drawings: ``start [B, ...]``, and ``eps [B, S, ...]``, 0 where no step is drawn.

    ``trained [B, A]``: the steps that are drawn, see :func:`drawn_steps`.
    """

    start: Tensor
    trained: Tensor
    eps: Tensor

    def to(self, device: torch.device) -> "Noise":
        """The same on ``device``."""
        return Noise(self.start.to(device), self.trained.to(device), self.eps.to(device))


def noise(keys: Sequence[NoiseKey], shape: Sequence[int], denoise: Denoising) -> Noise:
    """The noise of rows ``keys`` for latents ``[B, *shape]``; that of the steps is never shared."""
    trained, size = drawn_steps(keys, denoise), math.prod(shape)
    own = normals(keys, (1 + trained.shape[1]) * size).view(len(keys), -1, *shape)
    start = own[:, 0]
    if denoise.start == "shared":
        start = normals(_shared(keys, "start"), size).view_as(start)
    eps = own.new_zeros(len(keys), denoise.steps, *shape)
    eps[torch.arange(len(keys))[:, None], trained] = own[:, 1:]
    return Noise(start, trained, eps)


def renoised(segment: Segment, keys: Sequence[NoiseKey], points: int) -> NoisedImageSegment:
    """The finished latents of ``segment`` at ``points`` fresh noise levels a row, decided by ``keys [B]``.

    Times lie one in each of equal parts of (0, 1) and are shifted as the drawing's own were.
    """
    if not isinstance(segment, FlowImageSegment):
        raise UserError(
            f"segment {segment.name!r} holds no latents but {segment.kind} actions: only the velocity of a"
            " diffusion expert can be taught this way"
        )
    clean = segment.latents[:, -1]
    drawn = uniforms([replace(key, segment=f"{key.segment}/times") for key in keys], points)
    time = (torch.arange(points) + drawn) / points
    shape = (len(segment), points, *clean.shape[1:])
    sigmas = shifted(time, segment.sampling.denoise.shift).to(clean)
    return NoisedImageSegment(
        name=segment.name,
        context=segment.context,
        sampling=segment.sampling,
        logp=torch.zeros_like(sigmas),
        mask=torch.ones_like(sigmas, dtype=torch.bool),
        clean=clean,
        sigmas=sigmas,
        noise=normals(keys, math.prod(shape[1:])).view(shape).to(clean),
    )


def velocities(segment: NoisedImageSegment, velocity: Velocity, *, at_once: int = 1) -> Tensor:
    """The velocity ``[B, A, ...]`` at each noised point; ``at_once`` as in :func:`score`."""
    columns = []
    points = (x.split(at_once, 1) for x in (segment.noised(), segment.sigmas))
    for x, sigma in zip(*points, strict=True):
        step = torch.zeros(sigma.numel(), dtype=torch.long, device=sigma.device)
        found = velocity(x.transpose(0, 1).flatten(0, 1), sigma.T.flatten(), step)
        columns.append(found.unflatten(0, (-1, len(segment))).transpose(0, 1))
    return torch.cat(columns, 1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, ...]``."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Transition:
    """Where a drawn step goes: normal around ``mean [B, ...]`` with spread ``std [B]``, both fp32."""

    mean: Tensor
    std: Tensor

    def logp(self, x: Tensor) -> Tensor:
        """Log-density at ``x [B, ...]``, the mean over its dimensions, ``[B]``."""
        squares = (x - self.mean).square().flatten(1).mean(1)
        return -squares / (2 * self.std.square()) - self.std.log() - math.log(2 * math.pi) / 2

    def kl(self, mean: Tensor) -> Tensor:
        """KL divergence to (and from) the same spread around ``mean [B, ...]``, nats a dimension, ``[B]``."""
        return (self.mean - mean).square().flatten(1).mean(1) / (2 * self.std.square())

    def entropy(self) -> Tensor:
        """Nats a dimension, ``[B]``: the schedule's alone, so no weight has a gradient from it."""
        return self.std.log() + (1 + math.log(2 * math.pi)) / 2


def transition(
    x: Tensor, velocity: Tensor, sigma: Tensor, after: Tensor, second: Tensor, denoise: Denoising
) -> Transition:
    """The drawn step from ``x [B, ...]`` at ``sigma [B]`` to ``after [B]``, in fp32 whatever comes in.

    ``second [B]`` is the schedule's second noise level, which "flow" needs at sigma = 1.
    """
    x, v = x.float(), velocity.float()
    now, to = _wide(sigma, x), _wide(after, x)
    if denoise.noise == "cps":
        angle = denoise.level * math.pi / 2
        data, noise = x - now * v, x + (1 - now) * v
        return Transition((1 - to) * data + to * math.cos(angle) * noise, after * math.sin(angle))
    variance = torch.full_like(sigma, denoise.level**2)  # g^2
    if denoise.noise == "flow":
        variance = variance * sigma / (1 - torch.where(sigma == 1, second, sigma))
    pull = _wide(variance, x) / (2 * now)
    mean = x * (1 + pull * (to - now)) + v * (1 + pull * (1 - now)) * (to - now)
    return Transition(mean, (variance * (sigma - after)).sqrt())


@dataclass(frozen=True)
class Denoised:
    """A finished drawing: the tensors of a :class:`~triptych.trajectory.FlowImageSegment`."""

    latents: Tensor
    sigmas: Tensor
    trained: Tensor
    means: Tensor
    logp: Tensor
    mask: Tensor


@torch.no_grad()
def sample(velocity: Velocity, noise: Noise, sigmas: Tensor, denoise: Denoising) -> Denoised:
    """Denoise B latents along ``sigmas [S + 1]``, of :func:`schedule` or another; S calls of ``velocity``.

    Log-probabilities are recorded from the means that the draws used.
    """
    rows, steps = noise.eps.shape[:2]
    levels = sigmas.to(noise.start).expand(rows, -1)
    drawn_anywhere = set(noise.trained.flatten().tolist())
    x, path = noise.start, [noise.start]
    means, logp = torch.zeros_like(noise.eps), noise.start.new_zeros(rows, steps)
    for k in range(steps):
        sigma, after = levels[:, k], levels[:, k + 1]
        v = velocity(x, sigma, torch.full((rows,), k, device=x.device)).float()
        following = x + v * _wide(after - sigma, x)
        if k in drawn_anywhere:
            found = transition(x, v, sigma, after, levels[:, 1], denoise)
            drawn = _wide((noise.trained == k).any(1), x)
            following = torch.where(drawn, found.mean + _wide(found.std, x) * noise.eps[:, k], following)
            means[:, k], logp[:, k] = found.mean, found.logp(following)
        x = following
        path.append(x)
    index = torch.arange(rows, device=x.device)[:, None]
    recorded = logp[index, noise.trained]
    mask = torch.ones_like(recorded, dtype=torch.bool)
    return Denoised(torch.stack(path, 1), levels, noise.trained, means[index, noise.trained], recorded, mask)


def score(
    segment: FlowImageSegment, velocity: Velocity, *, reference: Velocity | None = None, at_once: int = 1
) -> Scores:
    """Score recorded steps at the recorded latents and noise levels: means over dimensions.

    A call of ``velocity`` computes ``at_once`` of them: all rows at one step, then all at the next.
    ``reference`` computes with the reference's weights by itself, and gives the KL to it.
    """
    if not segment.actions:
        raise UserError(
            f"segment {segment.name!r} was denoised without noise: it has no probabilities to score"
        )
    each = torch.arange(len(segment), device=segment.trained.device)
    columns: list[dict[str, Tensor]] = []
    for steps, means in zip(*(x.split(at_once, 1) for x in (segment.trained, segment.means)), strict=True):
        step, rows = steps.T.flatten(), each.repeat(steps.shape[1])
        x, there = segment.latents[rows, step], segment.latents[rows, step + 1]
        sigma, after = segment.sigmas[rows, step], segment.sigmas[rows, step + 1]
        about = (sigma, after, segment.sigmas[rows, 1], segment.sampling.denoise)
        found = transition(x, velocity(x, sigma, step), *about)
        column = {"logp": found.logp(there), "entropy": found.entropy(), "std": found.std}
        column |= {"old_kl": found.kl(means.transpose(0, 1).flatten(0, 1)), "step_size": sigma - after}
        if reference is not None:
            with torch.no_grad():
                other = transition(x, reference(x, sigma, step), *about)
            column["kl"] = found.kl(other.mean)
        columns.append({name: value.view(-1, len(segment)).T for name, value in column.items()})
    return Scores(**{name: torch.cat([c[name] for c in columns], 1) for name in columns[0]})
