"""Low-rank adapters through peft, put into a network in place so that its own structure stays visible."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from triptych.errors import UserError
from triptych.models.weights import compare, read_config, read_state_dict


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters through peft: rank, alpha, which linear layers, which modules train in full."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    full: tuple[str, ...] = ()


def adapters(network: nn.Module) -> list[Any]:
    """The modules that peft replaced (adapted layers and fully trained copies); empty without adapters."""
    return [
        m
        for m in network.modules()
        if type(m).__module__.startswith("peft.") and hasattr(m, "active_adapters")
    ]


def add_lora(network: Any, settings: LoraSettings, tower: str = "") -> None:
    """Freeze the network and add trainable adapters; raises if no layer matches.

    Layers whose names begin with ``tower`` stay as they are, whatever they are called after that.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("LoRA needs peft: pip install 'triptych[lora]'") from None
    targets = list(settings.targets)
    if tower:
        names = [name for name, _ in network.named_modules() if not name.startswith(tower)]
        targets = [n for n in names if any(f".{n}".endswith(f".{target}") for target in settings.targets)]
        if not targets:
            raise UserError(f"LoRA found no layer to adapt: none is named {', '.join(settings.targets)}")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets,
        modules_to_save=list(settings.full) or None,
        base_model_name_or_path=str(network.config._name_or_path),
    )
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        raise UserError(f"LoRA found no layer to adapt: {error}") from None


@contextmanager
def without_adapters(network: Any) -> Iterator[None]:
    """Inside, adapters are switched off: the base model computes."""
    found, frozen = adapters(network), [p for p in network.parameters() if not p.requires_grad]
    for module in found:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in found:
            module.enable_adapters(True)
        for parameter in frozen:  # peft lets all of an adapter train that it switches on
            parameter.requires_grad_(False)


def base_of(folder: Path) -> str | None:
    """The base model that an adapter's folder names; UserError where it names none, or itself."""
    file = folder / "adapter_config.json"
    if not file.exists():
        return None
    base = read_config(folder, file.name).get("base_model_name_or_path")
    if not base or Path(base).resolve() == folder.resolve():
        raise UserError(f"{file} does not name the base model that its adapter belongs to")
    return str(base)


def save_adapter(network: Any, folder: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` in peft's layout."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = network.peft_config["default"]
    tensors = get_peft_model_state_dict(network)
    save_file(
        {f"base_model.model.{k}": v.contiguous() for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    config.save_pretrained(str(folder))


def load_adapter(network: Any, folder: Path) -> None:
    """Read what :func:`save_adapter` wrote into a network that has the same adapters."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    tensors = read_state_dict(folder, ["adapter_model.safetensors"])
    tensors = {name.removeprefix("base_model.model."): value for name, value in tensors.items()}
    expected = get_peft_model_state_dict(network)
    compare(expected, tensors, f"{folder}: the adapter does not fit this model")
    set_peft_model_state_dict(network, tensors)


def open_adapter(network: Any, folder: Path) -> None:
    """Put the adapter that lies in ``folder`` on a base network."""
    from peft import PeftConfig, inject_adapter_in_model

    inject_adapter_in_model(PeftConfig.from_pretrained(str(folder)), network)
    load_adapter(network, folder)
