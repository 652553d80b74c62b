"""The calibration pass: all windows through one decoder layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flexq_ft.converter.calibration.model import LayeredModel
from flexq_ft.converter.calibration.statistics import Statistic
from flexq_ft.converter.calibration.windows import CalibrationWindows
from flexq_ft.converter.source.base import Source

if TYPE_CHECKING:
    from torch.nn import Linear

__all__ = ["LayerInputs", "calibrate"]

_S = TypeVar("_S", bound=Statistic)


@dataclass(frozen=True)
class LayerInputs(Generic[_S]):
    """One decoder layer, after all windows went through it.

    statistics: by linear ("layers.0.qkv", …), those that were asked for.
    linears:    by the same names, the torch linears that read the input (q, k and v; gate and up),
                with their weights [N, K] in fp32; gone when the iteration goes on.
    """

    layer: int
    statistics: dict[str, _S]
    linears: dict[str, list[Linear]]


def calibrate(
    source: Source,
    windows: CalibrationWindows,
    statistic: Callable[[str], _S | None],
    *,
    device: str = "auto",
) -> Iterator[LayerInputs[_S]]:
    """The inputs of every linear for which `statistic` gives an accumulator, layer by layer.

    The model computes in fp32. device: auto, cpu, cuda or cuda:N. Memory: one layer, its
    accumulators, and the hidden states of all windows.
    Raises what LayeredModel raises.
    """
    model = LayeredModel(source, device=device)
    states = model.embed(windows.windows)
    for layer in range(len(model)):
        model.load(layer)
        linears = model.linears(layer)
        statistics = {name: made for name in linears if (made := statistic(name)) is not None}
        hooks = [
            linears[name][0].register_forward_pre_hook(_adder(accumulator))
            for name, accumulator in statistics.items()
        ]
        states = model.run(layer, states)
        for hook in hooks:
            hook.remove()
        yield LayerInputs(layer, statistics, {name: linears[name] for name in statistics})
        model.free(layer)


def _adder(accumulator: Statistic) -> Callable[..., None]:
    def add(module: Any, inputs: tuple[Any, ...]) -> None:
        accumulator.add(inputs[0].reshape(-1, inputs[0].shape[-1]))

    return add
