"""What lies beside a reward model's weights in `reward_model.json`: how to load it and how to read its scores."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

FILE_NAME = "reward_model.json"


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return a dtype as the settings name it, such as `"float32"`."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class RewardModelSettings:
    """How a reward model was trained, as far as scoring must follow it.

    Attributes:
        score_offset: Subtracted from the model's output, so that scores have mean 0 on the held-out data.
        temperature: `sigmoid((score_a - score_b) / temperature)` is the probability that a is preferred.
        max_length: The `max_length` of training, in tokens.
        quantization: The bitsandbytes configuration of the base, as a dict.
        dtype: The dtype of the base's weights, such as `"float32"`.
        base: What `base_fingerprint` says of an adapter's base, in this dtype and quantization.

    Raises:
        ValueError: A value is impossible.
    """

    score_offset: float = 0.0
    temperature: float = 1.0
    max_length: int | None = None
    quantization: dict[str, Any] | None = None
    dtype: str | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        for name, low in (("score_offset", -math.inf), ("temperature", 0.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not (number and value > low):
                raise ValueError(f"{name} must be a finite number{' above 0' if low == 0 else ''}, got {value!r}.")
        length = self.max_length
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise ValueError(f"max_length must be null or a whole number of tokens above 0, got {length!r}.")
        if self.dtype is not None and not isinstance(getattr(torch, str(self.dtype), None), torch.dtype):
            raise ValueError(f"dtype must be null or one of PyTorch's, such as 'float32', got {self.dtype!r}.")
        if self.quantization is not None and not isinstance(self.quantization, dict):
            raise ValueError(f"quantization must be null or a bitsandbytes configuration, got {self.quantization!r}.")

    def save(self, folder: str | Path) -> None:
        """Write `reward_model.json` into `folder`."""
        Path(folder, FILE_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "RewardModelSettings":
        """Read `reward_model.json` from `folder`; a folder without one gives the neutral settings.

        Raises:
            ValueError: The file is not JSON, holds an unknown key or an impossible value.
        """
        path = Path(folder, FILE_NAME)
        return cls.read(path) if path.is_file() else cls()

    @classmethod
    def read(cls, path: str | Path) -> "RewardModelSettings":
        """Read the file at `path`.

        Raises:
            ValueError: The file is not JSON, holds an unknown key or an impossible value.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: it is not valid JSON ({error}).") from error
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known)) if isinstance(values, dict) else [values]
        if unknown:
            raise ValueError(f"{path}: unknown entry {unknown[0]!r}. It may hold: {', '.join(known)}.")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
