"""What survives a latent codec: renders of the embedded world, judged by the verifier after a round trip.

Compares a linear codec (principal components of patches, decoded linearly) with the one of the starters (the
same components, decoded to the nearest entry of a dictionary), with latents as they are and inexact by normal
noise of a share of their spread. Prints the share of scenes that are still right.

    python benchmarks/latent_codec.py starters/janus
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import fold

from triptych.models.base import to_pictures
from triptych.models.latent_codec import PatchLatentCodec
from triptych.models.patch_codec import PatchCodec
from triptych.recipes import shapes_world
from triptych.shapes import sample_scene, screening_prompts, train_prompt

NOISE = (0.0, 0.1, 0.2, 0.3)
SCENES = 200


def linear(codec: PatchLatentCodec, latents: Tensor) -> Tensor:
    """Decoded without the dictionary: each latent's own patch."""
    points = latents.flatten(2).transpose(1, 2)
    patches = (points * codec.scale) @ codec.basis.T + codec.mean
    side = latents.shape[2] * codec.factor
    return fold(patches.transpose(1, 2), (side, side), kernel_size=codec.factor, stride=codec.factor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dictionary", type=Path, help="a folder with a codec.safetensors")
    dictionary = PatchCodec(PatchCodec.load(parser.parse_args().dictionary).codebook.float())
    rng = np.random.default_rng(0)
    fitted = [sample_scene(train_prompt(rng), rng) for _ in range(500)]
    prompts = list(screening_prompts(SCENES))
    images = shapes_world.as_images([shapes_world.picture_of(sample_scene(m, rng)) for m in prompts])
    known = shapes_world.as_images([shapes_world.picture_of(scene) for scene in fitted])
    print(f"| components | decoder | {' | '.join(f'noise {n}' for n in NOISE)} |")
    print("|---|---|" + "---|" * len(NOISE))
    for channels in (4, 6, 8, 16, 24):
        codec = PatchLatentCodec.fit(dictionary, known, channels)
        latents = codec.encode(images)
        for name, decode in (("linear", lambda z, c=codec: linear(c, z)), ("dictionary", codec.decode)):
            shares = []
            for noise in NOISE:
                drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
                decoded = to_pictures(decode(latents + noise * drawn))
                judged = zip(decoded, prompts, strict=True)
                shares.append(np.mean([shapes_world.verdict(p, m).correct for p, m in judged]))
            print(f"| {channels} | {name} | {' | '.join(f'{s:.1%}' for s in shares)} |", flush=True)


if __name__ == "__main__":
    main()
