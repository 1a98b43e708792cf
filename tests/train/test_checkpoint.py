import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.train import checkpoint
from triptych.train.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    pack_optimizer,
    prune,
    save_checkpoint,
    unpack_optimizer,
)

TENSORS = {
    "average": {"w": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "step": torch.tensor(7.0)},
    "optimizer": {"count": torch.tensor([1, 2**40]), "flag": torch.tensor([True, False])},
    "empty": {},
}
STATE = {"best": float("-inf"), "rate": 0.1 + 0.2, "names": ["a", "ü"], "deep": {"x": None}}


def model_files(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")


def save(root: Path, step: int, copy: Callable[[Path], None] | None = model_files) -> Path:
    return save_checkpoint(root, step, tensors=TENSORS, state=STATE, copy=copy)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    tensors, state = load_checkpoint(path)
    assert path.name == "step_00000010" and latest_checkpoint(tmp_path) == path
    assert state == STATE and tensors.keys() == TENSORS.keys()
    assert all(same(tensors[stem], TENSORS[stem]) for stem in TENSORS)
    assert (path / "model" / "config.json").read_text() == "{}"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save_checkpoint(tmp_path, 1, tensors={}, state={"second": True})
    assert load_checkpoint(path) == ({}, {"second": True})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_killed_while_writing(tmp_path: Path) -> None:
    old = save(tmp_path, 1)
    code = f"""
        import os
        from pathlib import Path
        from triptych.train.checkpoint import save_checkpoint
        save_checkpoint(Path({str(tmp_path)!r}), 2, tensors={{}}, state={{}}, copy=lambda p: os._exit(9))
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, timeout=300)
    assert done.returncode == 9
    assert any(p.name.startswith(".tmp-step_00000002") for p in tmp_path.iterdir())
    assert latest_checkpoint(tmp_path) == old
    (tmp_path / f".tmp-step_00000003-{os.getpid()}").mkdir()  # process ids come round again
    new = save(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == [old, new], "the leftover is cleaned up"


def test_nothing_bears_the_name_before_everything_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    replace, sync = os.replace, checkpoint._sync

    def renamed(source: Path, target: Path) -> None:
        on_disk = {str(p.relative_to(source)) for p in Path(source).rglob("*")}
        assert on_disk <= set(synced), "renamed before it was synced"
        assert synced[-2:] == ["MANIFEST.json", "."], "the manifest is the last file, then the folder"
        replace(source, target)

    def noted(path: Path) -> None:
        inside = path.parts[len(tmp_path.parts) + 1 :]
        synced.append(str(Path(*inside)))
        sync(path)

    monkeypatch.setattr(checkpoint, "_sync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, 1)
    assert "model/config.json" in synced


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WRAPPED = SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("place", ["copy", "save_file", "replace"])
@pytest.mark.parametrize("error", [FULL, WRAPPED], ids=["os", "safetensors"])
def test_a_full_disk_leaves_the_previous_one(
    tmp_path: Path, place: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(tmp_path, 1)

    def fail(*arguments: Any) -> None:
        raise error

    if place != "copy":
        monkeypatch.setattr(os if place == "replace" else checkpoint, place, fail)
    message = r"step_00000002: .*No space left on device.*; the previous checkpoint step_00000001 is intact"
    with pytest.raises(UserError, match=message):
        save(tmp_path, 2, copy=fail if place == "copy" else None)
    assert list(tmp_path.iterdir()) == [old] and latest_checkpoint(tmp_path) == old


def test_a_first_checkpoint_that_fails_and_other_errors(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise FULL

    def wrong(folder: Path) -> None:
        raise KeyError("our mistake")

    with pytest.raises(UserError, match="there is no earlier checkpoint"):
        save(tmp_path, 1, copy=full)
    with pytest.raises(KeyError, match="our mistake"):
        save(tmp_path, 1, copy=wrong)
    assert list(tmp_path.iterdir()) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: os.truncate(p / "average.safetensors", 20), r"average.safetensors has 20 bytes"),
    "flipped": (lambda p: flip(p / "average.safetensors"), r"average.safetensors is not what was written"),
    "nested": (lambda p: (p / "model/config.json").write_text("[]"), r"model/config.json is not what"),
    "missing": (lambda p: (p / "state.json").unlink(), r"state.json: No such file"),
    "no manifest": (lambda p: (p / "MANIFEST.json").unlink(), r"MANIFEST.json: No such file"),
    "half a manifest": (lambda p: os.truncate(p / "MANIFEST.json", 30), r"MANIFEST.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_previous_one_used(tmp_path: Path, kind: str) -> None:
    old, new = save(tmp_path, 9), save(tmp_path, 10)
    damage, says = DAMAGE[kind]
    damage(new)
    with pytest.warns(UserWarning, match=rf"step_00000010 is damaged and not used: {says}"):
        assert latest_checkpoint(tmp_path) == old
    with pytest.raises(UserError, match=says):
        load_checkpoint(new)


def test_a_missing_one_says_what_is_there(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    save(tmp_path, 1)
    save(tmp_path, 20)
    with pytest.raises(UserError, match=r"step_00000005; .* are: step_00000020, step_00000001"):
        load_checkpoint(tmp_path / "step_00000005")


def test_prune_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, copy=None) for step in (1, 2, 3, 4, 100000000)]
    os.truncate(paths[4] / "state.json", 1)
    prune(tmp_path, 2, {tmp_path / "." / paths[0].name})
    assert sorted(tmp_path.iterdir()) == sorted([paths[0], *paths[2:]]), "a damaged one counts for nothing"
    prune(tmp_path, 1)
    assert sorted(tmp_path.iterdir()) == sorted(paths[3:])


# -- optimizers --------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "base": 0.3}, {"params": p[1:], "lr": 0.02}], betas=(0.8, 0.99), amsgrad=True
    ),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.05, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
}


def trained(kind: str, steps: int) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    random = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3, generator=random)) for _ in range(3)]
    optimizer = OPTIMIZERS[kind](parameters)
    advance(parameters, optimizer, steps)
    return parameters, optimizer


def advance(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        for i, p in enumerate(parameters):
            p.grad = (p.detach() * (i + 1)).sin()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 5])
def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: str, steps: int) -> None:
    parameters, optimizer = trained(kind, steps)
    tensors, about = pack_optimizer(optimizer)
    path = save_checkpoint(tmp_path, steps, tensors={"optimizer": tensors}, state=about)
    weights = [p.detach().clone() for p in parameters]

    loaded, state = load_checkpoint(path)
    again = [nn.Parameter(w) for w in weights]
    fresh = OPTIMIZERS[kind](again)
    unpack_optimizer(fresh, loaded["optimizer"], state)
    repacked, about_again = pack_optimizer(fresh)
    assert same(repacked, tensors) and about_again == json.loads(json.dumps(about))
    advance(parameters, optimizer, 5)
    advance(again, fresh, 5)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))


def test_settings_are_those_of_the_run_that_goes_on() -> None:
    _, optimizer = trained("AdamW", 3)
    state, about = pack_optimizer(optimizer)
    again = OPTIMIZERS["AdamW"]([nn.Parameter(torch.zeros(4, 3)) for _ in range(3)])
    for group in again.param_groups:
        group |= {"lr": 0.5, "betas": (0.1, 0.2)}
    unpack_optimizer(again, state, about)
    assert {(group["lr"], group["betas"]) for group in again.param_groups} == {(0.5, (0.1, 0.2))}
    assert same(pack_optimizer(again)[0], state), "and what it remembers is the checkpoint's"


def test_another_models_optimizer_is_refused() -> None:
    _, optimizer = trained("Muon", 2)
    fewer = OPTIMIZERS["Muon"]([nn.Parameter(torch.zeros(4, 3))])
    with pytest.raises(UserError, match="other parameters, or groups of them"):
        unpack_optimizer(fewer, *pack_optimizer(optimizer))
