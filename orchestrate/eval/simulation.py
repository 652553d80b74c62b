"""A Hugging Face model in torch with fake quantisation, as an evaluation needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexq_ft.converter.source import absent_model
from flexq_ft.converter.torch_packages import import_torch, torch_device
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.eval.fake_quant import FakeFormat, quantize_model
from flexq_ft.orchestrate.sampling import SamplingParams
from flexq_ft.orchestrate.tokenizer import Tokenizer

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class SimulationInfo:
    """What is simulated, and how."""

    form: FakeFormat
    dtype: str
    device: str

    def to_json(self) -> dict[str, Any]:
        return {"simulation": asdict(self.form), "dtype": self.dtype, "device": self.device}


class HfCheckpoint:
    """A Hugging Face folder in torch: `model` in eval mode on `device`, and its `tokenizer`."""

    def __init__(
        self, folder: Path, *, wanted_by: str, dtype: str, device: str, threads: int | None
    ) -> None:
        """wanted_by: of the errors. Raises ConfigError without torch or for what is no Hugging Face
        folder, DeviceError for a GPU that torch does not see."""
        torch, transformers = import_torch(wanted_by)
        if not folder.exists():
            raise absent_model(folder, hint="a Hugging Face folder")
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{wanted_by} needs a Hugging Face folder, and {folder} holds no config.json.",
                hint="the checkpoint itself as MODEL, not a converted folder",
            )
        tokenizer = Tokenizer.load(folder)
        if tokenizer is None:
            raise ConfigError(
                f"{folder} holds no tokenizer.json, so it cannot be evaluated on a text.",
                hint="AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one",
            )
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch_device(torch, device, flag="--device")
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, _DTYPES[dtype]), local_files_only=True
        )
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.max_positions = int(model.config.max_position_embeddings)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)


class SimulatedModel:
    """Scores ids with transformers (perplexity.Scorer)."""

    def __init__(
        self,
        folder: Path,
        form: FakeFormat,
        *,
        dtype: str = "fp32",
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Raises as HfCheckpoint does."""
        checkpoint = HfCheckpoint(
            folder, wanted_by="--simulate", dtype=dtype, device=device, threads=threads
        )
        self.info = SimulationInfo(form, dtype, checkpoint.device)
        self._model = checkpoint.model
        quantize_model(self._model, form)
        self._torch = import_module("torch")
        self.tokenizer = checkpoint.tokenizer
        self.max_positions = checkpoint.max_positions

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def score(
        self, ids: Sequence[int], /, first: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Log-probability of each token from `first` on, and the likeliest ids."""
        torch = self._torch
        window = torch.tensor([list(ids)], device=self.info.device)
        with torch.inference_mode():
            logits = self._model(window, use_cache=False).logits[0, first - 1 : -1].float()
            logprobs = logits.log_softmax(-1).gather(1, window[0, first:, None])[:, 0]
        return logprobs.cpu().numpy(), logits.argmax(-1).cpu().numpy()

    def score_batch(
        self, texts: Sequence[Sequence[int]], first: Sequence[int], /
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """One after the other."""
        return [self.score(ids, begin) for ids, begin in zip(texts, first, strict=True)]

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[str]:
        raise ConfigError(
            "--simulate scores texts and generates none.",
            hint="tasks of multiple choice, or the runtime's own schemes without --simulate",
        )
