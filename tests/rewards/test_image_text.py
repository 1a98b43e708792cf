from pathlib import Path

import pytest
import torch

import tiny_clip
from triptych.models.clip import HPS_FILE, Clip
from triptych.recipes.rewards import find_reward
from triptych.rewards.image_text import ClipScore, HPSv2, PickScore
from triptych.trajectory import Sample, Task


def sample(i: int, prompt: str, *, text: str | None = None, drawn: bool = True) -> Sample:
    picture = torch.full((9, 9, 3), 40 * i, dtype=torch.uint8)
    picture[: i + 1, 2:] = torch.tensor([200, 10 * i, 90], dtype=torch.uint8)
    task = Task(id=str(i), prompt=prompt, target_text=text)
    return Sample(task=task, texts={}, pictures={}, completion=picture if drawn else "words")


SAMPLES = [
    sample(0, "a red ring"),
    sample(1, "make it blue", text="a blue ring"),
    sample(2, "a text", drawn=False),
    sample(3, "two squares"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.save_reader(folder)
    torch.save(tiny_clip.published(), folder / HPS_FILE)
    Clip.open_hps(folder, folder).model.save_pretrained(folder)
    return folder


def test_scores_are_cosines_with_the_text_of_the_result_or_those_times_the_scale(folder: Path) -> None:
    clip = Clip.open(folder)
    drawn = [s for s in SAMPLES if not isinstance(s.completion, str)]
    seen = clip.see([s.completion for s in drawn])  # type: ignore[misc]
    read = clip.read(["a red ring", "a blue ring", "two squares"])
    expected = torch.nn.functional.cosine_similarity(seen, read).tolist()
    assert len(set(expected)) == 3
    for batch in (1, 2, 32):
        found = ClipScore(clip, batch=batch)(SAMPLES)
        assert found.pop(2) is None and found == pytest.approx(expected, abs=1e-5)
    found = PickScore(clip)(SAMPLES)
    assert found.pop(2) is None and found == pytest.approx([clip.scale * x for x in expected], abs=1e-5)
    assert HPSv2(clip)(SAMPLES) == pytest.approx(ClipScore(clip)(SAMPLES)) and HPSv2(clip)([]) == []


def test_they_are_named_with_their_folder(folder: Path) -> None:
    clip = find_reward(f"clip={folder}")
    assert isinstance(clip, ClipScore)
    pick = find_reward(f"pickscore={folder}")
    assert isinstance(pick, PickScore)
    assert pick(SAMPLES)[0] != clip(SAMPLES)[0] is not None
