"""The layers of a reward model that an adapter trains and saves whole: its head, and others that no checkpoint holds.

Transformers draws the layers that a checkpoint lacks at random, without a word in any file: the head, and on many
encoders one more before it (`pre_classifier` of DistilBERT, `pooler` of DeBERTa). An adapter that left them to the base
would find other ones there when it is loaded.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import transformers
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.integrations import deepspeed

from ..replaced import replaced
from .pooling import classification_module, head_name, head_of


def score_layer(model: nn.Module) -> nn.Linear:
    """Return the linear layer that makes the score, the last one of the head; under PEFT, the copy that is trained.

    Args:
        model: A sequence-classification model, or the PEFT model around one.

    Raises:
        ValueError: There is no head of a known name, or it has not one output.
    """
    module = classification_module(model)
    linears = [part for part in trained_copy(head_of(module)).modules() if isinstance(part, nn.Linear)]
    if not linears or linears[-1].out_features != 1:
        raise ValueError(f"{type(module).__name__} has no head with one output, so it is no reward model.")
    return linears[-1]


def trained_copy(module: nn.Module) -> nn.Module:
    """Return the copy of a layer that PEFT trains, if it has one, else the layer."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.modules_to_save[module.active_adapters[0]]
    return module


def cast_inputs(module: nn.Module) -> None:
    """Let linear layers take hidden states of any dtype and device.

    A head may be float32 over a bfloat16 base, and on another GPU than the last layers of a model that is split.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(_cast_input)


def _cast_input(module: nn.Linear, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].to(module.weight.device, module.weight.dtype), *args[1:])


def layers_to_save(path: str, **options: Any) -> list[str]:
    """Return the names of the layers that a reward model of this checkpoint needs to save whole, the head's included.

    The weights are not read, only which there are.

    Args:
        path: A folder or a name on the Hub, of a model of any kind.
        options: `revision` and `trust_remote_code`, as for `from_pretrained`.

    Raises:
        OSError: There is no such model.
        ValueError: It cannot become a sequence-classification model.
    """
    # DeepSpeed ZeRO-3 would divide the weights, and takes no `device_map`.
    with quiet(), replaced(deepspeed, _hf_deepspeed_config_weak_ref=None):
        config = AutoConfig.from_pretrained(path, num_labels=1, **options)
        # Packed 4-bit weights cannot be unpacked without being read; as they are, only their shapes do not match.
        vars(config).pop("quantization_config", None)
        outline, report = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    name = head_name(outline)
    in_head = [f"{name}.{part}".rstrip(".") for part, m in head_of(outline).named_modules() if isinstance(m, nn.Linear)]
    drawn = {key.rpartition(".")[0] for key in report["missing_keys"]}
    return sorted({*in_head, *drawn})


def unquantized(quantization: Any, layers: Sequence[str]) -> Any:
    """Return the bitsandbytes configuration with `layers` left out: they train, and are saved, as numbers.

    Left to itself, Transformers quantizes a head that has a bias. Other kinds of configuration stay as they are.
    """
    if not hasattr(quantization, "llm_int8_skip_modules"):
        return quantization
    quantization = copy(quantization)
    quantization.llm_int8_skip_modules = sorted({*(quantization.llm_int8_skip_modules or ()), *layers})
    return quantization


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Transformers and PEFT show while loading: what matters of it becomes an error here."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
