from pathlib import Path

import pytest
import torch
from torch import Tensor

from triptych.models import patch_codec
from triptych.models.patch_codec import PatchCodec, fit, nearest, patches_of


def codebook(codes: int, size: int) -> Tensor:
    return torch.rand(codes, 3 * size * size, generator=torch.Generator().manual_seed(0))


def assemble(ids: Tensor, book: Tensor, size: int) -> Tensor:
    """Pictures of patches laid out by hand, one after another in reading order."""
    side = round(ids.shape[1] ** 0.5)
    images = torch.zeros(len(ids), 3, side * size, side * size)
    for b, row in enumerate(ids.tolist()):
        for n, code in enumerate(row):
            y, x = (n // side) * size, (n % side) * size
            images[b, :, y : y + size, x : x + size] = book[code].view(3, size, size)
    return images


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ids_name_patches_in_raster_order_and_come_back(size: int) -> None:
    codec = PatchCodec(codebook(7, size))
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1], [6, 6, 2, 0, 0, 1, 5, 4, 3]])
    images = assemble(ids, codec.codebook, size)
    assert torch.equal(codec.decode(ids), images)
    assert torch.equal(codec.encode(images), ids)
    assert codec.patch == size


def test_a_patch_becomes_its_nearest_entry_by_distance() -> None:
    book = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [1.0, 1.0, 1.0]])
    pixels = torch.tensor([[0.44, 0.0, 0.0], [0.46, 0.0, 0.0], [0.4, 0.5, 0.4], [0.6, 0.6, 0.6]])
    images = pixels.T.reshape(1, 3, 2, 2)
    assert PatchCodec(book).encode(images).tolist() == [[0, 1, 0, 2]]


def test_nearest_is_the_smallest_distance_however_many_points() -> None:
    generator = torch.Generator().manual_seed(1)
    points, centres = torch.rand(70_000, 3, generator=generator), torch.rand(5, 3, generator=generator)
    assert torch.equal(nearest(points, centres), torch.cdist(points, centres).argmin(1))


def test_saved_codecs_come_back_bit_for_bit(tmp_path: Path) -> None:
    codec = PatchCodec(codebook(12, 4)[::2])  # a view that is not contiguous
    codec.save(tmp_path)
    again = PatchCodec.load(tmp_path)
    assert torch.equal(again.codebook, codec.codebook) and again.patch == 4


def flat_pictures(colours: list[list[float]], often: list[int]) -> Tensor:
    """Pictures of one patch each, every colour as often as asked."""
    rows = [
        torch.tensor(c)[:, None, None].expand(3, 2, 2)
        for c, n in zip(colours, often, strict=True)
        for _ in range(n)
    ]
    return torch.stack(rows)


def test_few_distinct_patches_are_all_kept_as_they_are() -> None:
    images = flat_pictures([[0.1, 0.2, 0.3], [0.9, 0.0, 0.4], [0.5, 0.5, 0.5]], [3, 1, 2])
    codec = fit(images, codes=5, size=2)
    assert codec.codebook.shape == (5, 12)
    assert torch.equal(codec.decode(codec.encode(images)), images)


def test_fitting_weighs_patches_by_how_often_they_occur() -> None:
    """Two codes for three colours: the two near ones share a code, at their weighted mean."""
    near, beside, far = [0.1] * 3, [0.2] * 3, [0.9] * 3
    codec = fit(flat_pictures([near, beside, far], [6, 2, 5]), codes=2, size=2)
    values = sorted(round(float(v), 4) for v in codec.codebook[:, 0])
    assert values == pytest.approx([(6 * 0.1 + 2 * 0.2) / 8, 0.9], abs=1e-4)


def test_more_rounds_fit_better() -> None:
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(2))

    def error(rounds: int) -> float:
        codec = patch_codec.fit(images, codes=16, rounds=rounds)
        return float(((codec.decode(codec.encode(images)) - images) ** 2).mean())

    start, one, ten = error(0), error(1), error(10)
    assert ten < one < start


def test_patches_are_cut_in_raster_order_channel_first() -> None:
    image = torch.arange(3 * 4 * 4).float().view(1, 3, 4, 4)
    patches = patches_of(image, 2)
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23, 34, 35, 38, 39]
