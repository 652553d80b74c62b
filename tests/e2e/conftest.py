"""Models of the end-to-end tests: generated ones, and every folder given with --models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.converter.options import POLICY_SCHEMES
from flexq_ft.converter.policy import BUILT_IN_POLICIES
from tests.reference.divergence import Divergence
from tests.tools.checkpoints import make_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Awkward on purpose: a short last group (hidden 192, 320), odd head counts, GQA, tied heads.
GENERATED: dict[str, dict[str, Any]] = {
    "llama-gqa": {"hidden": 256, "heads": 4, "kv_heads": 2, "inter": 768, "layers": 3},
    "llama-tied-short-group": {
        "hidden": 192,
        "heads": 6,
        "kv_heads": 3,
        "inter": 384,
        "tied": True,
        "rope": "llama3",
    },
    "qwen2-bias": {
        "family": "qwen2",
        "hidden": 128,
        "heads": 4,
        "kv_heads": 2,
        "inter": 576,
        "rope": "linear",
    },
    "opt": {"family": "opt", "hidden": 256, "heads": 4, "inter": 512, "layers": 3, "tied": True},
}


@dataclass
class Model:
    """A Hugging Face folder, its transformers model (fp32), and its conversions."""

    name: str
    hf_dir: Path
    work: Path
    trained: bool
    text: list[int]
    _folders: dict[tuple[Any, ...], Path] = field(default_factory=dict)
    _hf: Any = None

    def hf(self) -> Any:
        """A fresh reference; the caller may change it."""
        return transformers.AutoModelForCausalLM.from_pretrained(
            self.hf_dir, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @property
    def reference(self) -> Any:
        if self._hf is None:
            self._hf = self.hf()
        return self._hf

    def folder(
        self, scheme: str, *, dtype: str = "fp32", tp: int = 1, lm_head: str = "fp16"
    ) -> Path:
        key = (scheme, dtype, lm_head)
        if key not in self._folders or not (self._folders[key] / f"{tp}-gpu").exists():
            out = self.work / "-".join(key)
            options = ConvertOptions(scheme=scheme, dtype=dtype, lm_head=lm_head, tp=(tp,))
            convert(self.hf_dir, out, options)
            self._folders[key] = out
        return self._folders[key] / f"{tp}-gpu"

    def engine(self, folder_scheme: str, *, dtype: str = "fp32", **options: Any) -> _native.Engine:
        if folder_scheme in POLICY_SCHEMES:  # all of one folder, which is converted as flexq
            if folder_scheme != "flexq":
                options["policy"] = BUILT_IN_POLICIES[folder_scheme]
            folder_scheme = "w6ax"
        return _native.Engine(str(self.folder(folder_scheme, dtype=dtype)), **options)

    def windows(self, length: int, count: int) -> Iterator[list[int]]:
        for i in range(min(count, len(self.text) // length)):
            yield self.text[i * length : (i + 1) * length]

    @property
    def is_large(self) -> bool:
        """Too large for whole logits of many windows; judged by perplexity alone."""
        config = self.reference.config
        return bool(config.hidden_size * config.num_hidden_layers > 10_000)

    @property
    def positions(self) -> int:
        return int(self.reference.config.max_position_embeddings)


def hf_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def hf_logprobs(model: Any, ids: list[int]) -> np.ndarray:
    """Of each id but the first, given those before it."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        return logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def compare(
    divergence: Divergence, model: Model, engine: _native.Engine, hf: Any, ids: list[int]
) -> None:
    """One window of both sides: whole logits, or log-probabilities alone of a large model."""
    if model.is_large:
        divergence.add_scores(engine.score(ids)[0], hf_logprobs(hf, ids))
    else:
        divergence.add(ids, engine.forward(ids), hf_logits(hf, ids))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        given = [Path(d) for d in metafunc.config.getoption("--models")]
        metafunc.parametrize(
            "model", [*GENERATED, *given], ids=[*GENERATED, *(d.name for d in given)], indirect=True
        )


@pytest.fixture(scope="session")
def _models(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable:
    cache: dict[Any, Model] = {}
    text_file = request.config.getoption("--text")

    def get(key: str | Path) -> Model:
        if key in cache:
            return cache[key]
        if isinstance(key, Path):
            text = (
                Path(text_file)
                if text_file
                else next((Path(__file__).parents[2] / "configs" / "texts").glob("*.txt"))
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(key)
            ids = tokenizer(text.read_text(encoding="utf-8"))["input_ids"]
            cache[key] = Model(key.name, key, tmp_path_factory.mktemp(key.name), True, ids)
        else:
            work = tmp_path_factory.mktemp(key)
            folder = make_checkpoint(work / "hf", tokenizer=False, **GENERATED[key])
            ids = np.random.default_rng(7).integers(3, 320, 4000).tolist()
            cache[key] = Model(key, folder, work, False, ids)
        return cache[key]

    return get


@pytest.fixture
def model(request: pytest.FixtureRequest, _models: Callable) -> Model:
    return _models(request.param)
