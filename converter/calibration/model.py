"""A source's model in torch, as transformers wires it, with one decoder layer in memory at a time.

The weights come from the source, not from a folder, so that GGUF files and sources whose tensors
are rewritten as they are read (rotated, smoothed) run as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from flexq_ft.converter.architectures import ARCHITECTURES
from flexq_ft.converter.dtypes import as_float32
from flexq_ft.converter.source.base import Source
from flexq_ft.converter.torch_packages import import_torch, torch_device
from flexq_ft.errors import WeightError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

__all__ = ["LayeredModel", "check_device"]

_ROOT = "model."  # of module names; a checkpoint of the bare model lacks it


class _Reached(Exception):  # noqa: N818, no error
    """The first layer was reached; its inputs are known."""


class LayeredModel:
    """In fp32. Hidden states [sequences, length, hidden] go through it layer by layer."""

    def __init__(self, source: Source, *, device: str) -> None:
        """Raises ConfigError without torch and transformers, DeviceError for a GPU that torch does
        not see, WeightError for a checkpoint that does not fit its architecture."""
        torch, transformers = import_torch("--calibration")
        self._torch = torch
        self._source = source
        self.device = check_device(device)
        raw = source.hf_config()
        config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
        with torch.device("meta"):
            self._model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        self._decoder = getattr(self._model.model, "decoder", self._model.model)
        if hasattr(self._decoder, "rotary_emb"):  # its frequencies are no weights of the source
            kind = type(self._decoder.rotary_emb)
            self._decoder.rotary_emb = kind(config=config).to(self.device)
        self._linears = _linears(source)
        self._names = {id(module): name for name, module in self._model.named_modules()}
        self._arguments: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._decoder.layers)

    def linears(self, layer: int) -> dict[str, list[Linear]]:
        """Runtime name ("layers.0.qkv") -> the torch linears that read that input."""
        return {
            name: [self._model.get_submodule(path) for path in paths]
            for name, paths in self._linears.items()
            if name.startswith(f"layers.{layer}.")
        }

    def embed(self, windows: NDArray[Any]) -> list[Tensor]:
        """The first layer's inputs, [1, length, hidden] each."""
        states: list[Tensor] = []

        def reached(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])
            # The same for all windows, which are of one length.
            self._arguments = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            raise _Reached

        tables = [child for name, child in self._decoder.named_children() if "embed_" in name]
        for table in tables:
            self._load(table)
        handle = self._decoder.layers[0].register_forward_pre_hook(reached, with_kwargs=True)
        with self._torch.no_grad():
            for window in windows:
                ids = self._torch.tensor(window[None], device=self.device)
                try:
                    self._decoder(input_ids=ids, use_cache=False)
                except _Reached:
                    continue
        handle.remove()
        for table in tables:
            table.to("meta")
        return states

    def load(self, layer: int) -> None:
        self._load(self._decoder.layers[layer])

    def run(self, layer: int, states: list[Tensor]) -> list[Tensor]:
        """The layer's outputs. Raises WeightError where they are not finite."""
        module = self._decoder.layers[layer]
        outputs = []
        with self._torch.no_grad():
            for state in states:
                out = module(state, **self._arguments)
                out = out[0] if isinstance(out, tuple) else out
                if not self._torch.isfinite(out).all():
                    raise WeightError(
                        f"layer {layer} of {self._source.name} gives values that are not finite on"
                        " the calibration text",
                        hint="check the source checkpoint",
                    )
                outputs.append(out)
        return outputs

    def free(self, layer: int) -> None:
        self._decoder.layers[layer].to("meta")

    def _load(self, module: Module) -> None:
        prefix = self._names[id(module)]
        module.to_empty(device=self.device)
        with self._torch.no_grad():
            for name, parameter in module.named_parameters():
                full = f"{prefix}.{name}"
                if full not in self._source.tensors:
                    full = full.removeprefix(_ROOT)
                values = self._source.read_rows(full, 0, self._source.tensors[full].shape[0])
                parameter.copy_(self._torch.from_numpy(as_float32(values)))


def _linears(source: Source) -> dict[str, list[str]]:
    """Runtime name -> module paths, in the order of the model."""
    shapes = {name: info.shape for name, info in source.tensors.items()}
    units = ARCHITECTURES[source.config.architecture].units(source.config, shapes)
    found: dict[str, list[str]] = {}
    for unit in units:
        if unit.linear:
            paths = (_ROOT + part.name.removeprefix(_ROOT) for part in unit.parts)
            found.setdefault(unit.linear, []).extend(p.removesuffix(".weight") for p in paths)
    return found


def check_device(device: str) -> str:
    """What `auto` stands for. Raises ConfigError without torch and transformers, DeviceError for a
    GPU that torch does not see."""
    torch, _ = import_torch("--calibration")
    return torch_device(torch, device, flag="--calibration-device")
