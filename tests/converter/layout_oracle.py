"""Every byte of a model folder, derived anew from a checkpoint's tensors and the format's text.

Shares no code with the converter: plain loops over ranks and layers, whole matrices in memory, the
NumPy quantisers and the packer of tests/reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from tests.reference.packing import pack_int6
from tests.reference.quantization import weight_int6, weight_int8

Array = NDArray[Any]
DTYPES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}


def read_tensors(folder: Path) -> dict[str, Array]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                tensors[name] = file.get_tensor(name).astype(np.float32)
    return tensors


class Oracle:
    """files: name -> bytes of all .bin files of one folder."""

    def __init__(
        self,
        tensors: dict[str, Array],
        config: dict[str, Any],
        *,
        scheme: str,
        dtype: str,
        tp: int,
        maxima: dict[str, float] | None = None,
    ) -> None:
        self.t = tensors
        self.maxima = maxima  # static scales, of the inputs of stems
        self.scheme, self.dtype, self.tp = scheme, DTYPES[dtype], tp
        self.heads = config["num_attention_heads"]
        self.kv = config.get("num_key_value_heads", self.heads)
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.inter = config.get("intermediate_size") or config["ffn_dim"]
        self.layers = config["num_hidden_layers"]
        self.tied = config["tie_word_embeddings"]
        self.files: dict[str, bytes] = {}
        if config["model_type"] == "opt":
            self._opt()
        else:
            self._llama()

    def q_range(self, rank: int) -> slice:
        per = self.heads // self.tp * self.head_dim
        return slice(rank * per, (rank + 1) * per)

    def kv_range(self, rank: int) -> slice:
        if self.kv >= self.tp:
            per = self.kv // self.tp * self.head_dim
            return slice(rank * per, (rank + 1) * per)
        head = rank // (self.tp // self.kv)
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    def inter_range(self, rank: int) -> slice:
        if self.scheme != "w6ax":
            per = self.inter // self.tp
            return slice(rank * per, (rank + 1) * per)
        groups = -(-self.inter // 128)
        sizes = [groups // self.tp + (r < groups % self.tp) for r in range(self.tp)]
        begin = sum(sizes[:rank])
        return slice(begin * 128, min((begin + sizes[rank]) * 128, self.inter))

    def whole(self, stem: str, name: str, *, skip: int = 0) -> None:
        self.files[f"{stem}.bin"] = self.t[name][skip:].astype(self.dtype).tobytes()

    def column(self, stem: str, names: list[str], ranges: list[Any]) -> None:
        """Output channels split. ranges: one function of the rank per stacked tensor."""
        whole = [self.t[f"{name}.weight"] for name in names]
        if self.scheme == "w6ax":
            parts = [weight_int6(w) for w in whole]
        elif self.scheme != "fp16":
            parts = [weight_int8(w) for w in whole]
        for rank in range(self.tp):
            cuts = [at(rank) for at in ranges]
            if self.scheme == "fp16":
                rows = np.concatenate([w[c] for w, c in zip(whole, cuts, strict=True)])
                self.files[f"{stem}.weight.{rank}.bin"] = rows.T.astype(self.dtype).tobytes()
            else:
                codes = np.concatenate([p[0][c] for p, c in zip(parts, cuts, strict=True)])
                scales = np.concatenate([p[1][c] for p, c in zip(parts, cuts, strict=True)])
                self._quantized(f"{stem}.weight", rank, codes, scales)
            biases = [self.t.get(f"{name}.bias") for name in names]
            if biases[0] is not None:
                bias = np.concatenate([b[c] for b, c in zip(biases, cuts, strict=True)])
                self.files[f"{stem}.bias.{rank}.bin"] = bias.astype(self.dtype).tobytes()

    def row(self, stem: str, name: str, at: Any) -> None:
        """Input channels split; the bias is whole."""
        w = self.t[f"{name}.weight"]
        for rank in range(self.tp):
            cut = at(rank)
            if self.scheme == "fp16":
                self.files[f"{stem}.weight.{rank}.bin"] = w[:, cut].T.astype(self.dtype).tobytes()
            elif self.scheme == "w6ax":
                if any(at(r).start % 128 for r in range(self.tp)):
                    codes, scales = weight_int6(np.ascontiguousarray(w[:, cut]))
                else:
                    codes, scales = weight_int6(w)
                    codes = codes[:, cut]
                    scales = scales[:, cut.start // 128 : -(-cut.stop // 128)]
                self._quantized(f"{stem}.weight", rank, codes, scales)
            else:
                codes, scales = weight_int8(w)
                self._quantized(f"{stem}.weight", rank, codes[:, cut], scales)
        if f"{name}.bias" in self.t:
            self.whole(f"{stem}.bias", f"{name}.bias")

    def _quantized(self, stem: str, rank: int, codes: Array, scales: Array) -> None:
        if self.scheme == "w6ax":
            packed = pack_int6(np.ascontiguousarray(codes))
            self.files[f"{stem}.int6.{rank}.bin"] = packed.tobytes()
            self.files[f"{stem}.int6.scale.{rank}.bin"] = scales.T.tobytes()
        else:
            self.files[f"{stem}.w8.{rank}.bin"] = codes.tobytes()
            self.files[f"{stem}.w8.scale.{rank}.bin"] = scales.astype(np.float32).tobytes()
            if self.maxima is not None:
                scale = np.float32(self.maxima[stem]) / np.float32(127)
                self.files[f"{stem}.w8.act_scale.{rank}.bin"] = scale.tobytes()

    def _attention(self, at: str, ft: str, out: str) -> None:
        self.column(
            f"{ft}.attention.query_key_value",
            [f"{at}.self_attn.{x}_proj" for x in "qkv"],
            [self.q_range, self.kv_range, self.kv_range],
        )
        self.row(f"{ft}.attention.dense", f"{at}.self_attn.{out}", self.q_range)

    def _llama(self) -> None:
        self.whole("model.wte.weight", "model.embed_tokens.weight")
        self.whole("model.final_layernorm.weight", "model.norm.weight")
        if not self.tied:
            self.whole("model.lm_head.weight", "lm_head.weight")
        for i in range(self.layers):
            at = ft = f"model.layers.{i}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self.whole(f"{ft}.{norm}.weight", f"{at}.{norm}.weight")
            self._attention(at, ft, "o_proj")
            for name in ("gate_proj", "up_proj"):
                self.column(f"{ft}.mlp.{name}", [f"{at}.mlp.{name}"], [self.inter_range])
            self.row(f"{ft}.mlp.down_proj", f"{at}.mlp.down_proj", self.inter_range)

    def _opt(self) -> None:
        self.whole("model.wte", "model.decoder.embed_tokens.weight")
        self.whole("model.wpe", "model.decoder.embed_positions.weight", skip=2)
        if not self.tied:
            self.whole("model.lm_head.weight", "lm_head.weight")
        for kind in ("weight", "bias"):
            self.whole(f"model.final_layernorm.{kind}", f"model.decoder.final_layer_norm.{kind}")
        for i in range(self.layers):
            at, ft = f"model.decoder.layers.{i}", f"model.layers.{i}"
            for kind in ("weight", "bias"):
                norm = f"{at}.self_attn_layer_norm.{kind}"
                self.whole(f"{ft}.input_layernorm.{kind}", norm)
                norm = f"{at}.final_layer_norm.{kind}"
                self.whole(f"{ft}.post_attention_layernorm.{kind}", norm)
            self._attention(at, ft, "out_proj")
            self.column(f"{ft}.mlp.dense_h_to_4h", [f"{at}.fc1"], [self.inter_range])
            self.row(f"{ft}.mlp.dense_4h_to_h", f"{at}.fc2", self.inter_range)
