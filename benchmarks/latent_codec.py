"""What survives a latent codec: renders of the embedded world, judged by the verifier after a round trip.

Compares principal components of patches, decoded linearly or to the nearest entry of a dictionary, with the
codec of the starters, whose points hold share, outline, colour and background apart. Latents are as they are,
or inexact by normal noise of a share of their spread. Prints the share of scenes that are still right. How
soon a model learns to draw with one of them is another question, see docs/unirl_zero.md.

    python benchmarks/latent_codec.py starters/janus
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from triptych.models.base import to_pictures
from triptych.models.latent_codec import PatchLatentCodec
from triptych.models.patch_codec import PatchCodec, nearest, patches_of
from triptych.recipes import shapes_world
from triptych.shapes.prompts import screening_prompts, train_prompt
from triptych.shapes.scenes import sample_scene

NOISE = (0.0, 0.1, 0.2, 0.3)
SCENES = 200
Codec = tuple[str, int, Tensor, Callable[[Tensor], Tensor]]


def codecs(dictionary: PatchCodec, known: Tensor, images: Tensor) -> Iterator[Codec]:
    """Name, channels, latents ``[B, N, c]`` of unit spread, and how they become pictures."""
    patches, wanted = patches_of(known, 4).flatten(0, 1), patches_of(images, 4)
    mean = patches.mean(0)
    directions = torch.linalg.eigh(torch.cov((patches - mean).T)).eigenvectors.flip(1)
    for channels in (4, 6, 8, 16, 24):
        basis = directions[:, :channels]
        scale = ((patches - mean) @ basis).std(0)
        places = (dictionary.codebook - mean) @ basis / scale

        def linear(z: Tensor, basis: Tensor = basis, scale: Tensor = scale) -> Tensor:
            return dictionary.decode_soft((z * scale) @ basis.T + mean)

        def entry(z: Tensor, places: Tensor = places) -> Tensor:
            return dictionary.decode(nearest(z.flatten(0, 1), places).view(z.shape[:2]))

        latents = (wanted - mean) @ basis / scale
        yield "components, linear", channels, latents, linear
        yield "components, dictionary", channels, latents, entry
    for channels in (6, 7, 8, 9):
        codec = PatchLatentCodec.fit(dictionary, known, shapes_world.GROUNDS, channels)
        found = codec.encode(images).flatten(2).transpose(1, 2)
        spread = found.flatten(0, 1).std(0).clamp(min=1e-6)

        def apart(z: Tensor, codec: PatchLatentCodec = codec, spread: Tensor = spread) -> Tensor:
            return codec.decode((z * spread).transpose(1, 2).unflatten(2, (8, 8)))

        yield "apart, dictionary", channels, found / spread, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dictionary", type=Path, help="a folder with a codec.safetensors")
    dictionary = PatchCodec(PatchCodec.load(parser.parse_args().dictionary).codebook.float())
    rng = np.random.default_rng(0)
    fitted = [sample_scene(train_prompt(rng), rng) for _ in range(500)]
    prompts = list(screening_prompts(SCENES))
    images = shapes_world.as_images([shapes_world.picture_of(sample_scene(m, rng)) for m in prompts])
    known = shapes_world.as_images([shapes_world.picture_of(scene) for scene in fitted])
    print(f"| codec | channels | {' | '.join(f'noise {n}' for n in NOISE)} |")
    print("|---|---|" + "---|" * len(NOISE))
    for name, channels, latents, decode in codecs(dictionary, known, images):
        shares = []
        for noise in NOISE:
            drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
            judged = zip(to_pictures(decode(latents + noise * drawn)), prompts, strict=True)
            shares.append(np.mean([shapes_world.verdict(p, m).correct for p, m in judged]))
        print(f"| {name} | {channels} | {' | '.join(f'{s:.1%}' for s in shares)} |", flush=True)


if __name__ == "__main__":
    main()
