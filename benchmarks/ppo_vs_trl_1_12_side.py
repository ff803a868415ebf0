"""One side of `ppo_vs_trl_1_12.py`: train with one trainer, an update whenever a line comes in on standard input.

Reports go to standard output, a line of JSON each: the versions, after the imports; the weights, when training begins;
then the seconds of every update. It is started with the path of the TRL it shall import, and so imports little itself.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import functools
import gc
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)

VOCABULARY = 16000
PROMPTS, PROMPT_TOKENS = 64, 32
BATCH, MINI_BATCHES = 16, 4


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of words `0`, `1`, ..., so that every list of tokens is a text that becomes these tokens again."""
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *map(str, range(size - 2))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def write_models(folder: Path, *, layers: int, hidden_size: int) -> None:
    """Write what all sides load: policy, value or reward model, reward adapter; all randomly initialised."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        num_labels=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    tokenizer = word_tokenizer(VOCABULARY)
    scorer = AutoModelForSequenceClassification.from_config(config)
    for name in ("policy", "scorer", "reward_adapter"):
        tokenizer.save_pretrained(folder / name)
    scorer.save_pretrained(folder / "scorer")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "policy")
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(folder / "reward_adapter")


def common_options(folder: str, **options: Any) -> dict[str, Any]:
    """Options that both trainers have."""
    return {
        "output_dir": folder,
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "num_train_epochs": 100_000,  # until the process is ended
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | options


def lora() -> LoraConfig:
    """The adapter that both policies train."""
    return LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


def trl_1_12(folder: str, *, bf16: bool, epochs: int, new_tokens: int) -> Trainer:
    """TRL's trainer: critic and reward model are models of their own, and token ids are what it takes."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    options = {"per_device_train_batch_size": BATCH, "num_mini_batches": MINI_BATCHES, "num_sample_generations": 0}
    options |= {"num_ppo_epochs": epochs, "response_length": new_tokens, "bf16": bf16}
    dtype = torch.bfloat16 if bf16 else torch.float32

    def load(kind: type, name: str) -> PreTrainedModel:
        return kind.from_pretrained(f"{folder}/{name}", dtype=dtype)

    policy = load(AutoModelForCausalLM, "policy")
    value_model, reward_model = (load(AutoModelForSequenceClassification, "scorer") for _ in range(2))
    return PPOTrainer(
        args=PPOConfig(**common_options(f"{folder}/out", **options)),
        processing_class=word_tokenizer(VOCABULARY),
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts()]),
        peft_config=lora(),
    )


def ours(folder: str, *, critic: str, reward: str, merge: bool, bf16: bool, epochs: int, new_tokens: int) -> Trainer:
    """Our trainer."""
    from rlhf_ext import PPOConfig, PPOTrainer

    options = {"per_device_train_batch_size": BATCH // MINI_BATCHES, "steps_per_generation": MINI_BATCHES}
    options |= {"num_iterations": epochs, "max_completion_length": new_tokens, "bf16": bf16, "critic": critic}
    options |= {"merge_adapter_for_generation": merge}
    options |= {"model_init_kwargs": {"dtype": "bfloat16" if bf16 else "float32"}}
    if reward == "adapter":
        options["reward_adapter"] = f"{folder}/reward_adapter"
        reward_funcs = None
    else:
        reward_funcs = AutoModelForSequenceClassification.from_pretrained(
            f"{folder}/scorer", dtype=options["model_init_kwargs"]["dtype"]
        )
    # The space keeps the last word of a prompt apart from the first of its completion.
    rows = [{"prompt": " ".join(str(token - 2) for token in ids) + " "} for ids in prompts()]
    return PPOTrainer(
        f"{folder}/policy",
        reward_funcs,
        PPOConfig(**common_options(f"{folder}/out", **options)),
        Dataset.from_list(rows),
        peft_config=lora(),
    )


def prompts() -> list[list[int]]:
    """Token ids of all prompts."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, VOCABULARY, (PROMPTS, PROMPT_TOKENS), generator=generator).tolist()


class PhaseClock(TrainerCallback):
    """Takes the seconds of every update, and of its phases.

    Generation is what `generate` takes. Optimisation begins with the first pass that keeps a graph. Scoring is what
    lies between: passes of policy, reference, critic and reward model, and merging the adapter for generation.
    """

    def __init__(self, steps_per_update: int) -> None:
        self.steps_per_update = steps_per_update
        self.updates: list[dict[str, float]] = []
        GenerationMixin.generate = self._timed(GenerationMixin.generate)
        self._start()

    def _start(self) -> None:
        self._generation, self._optimisation_started = 0.0, 0.0
        self._started = now()

    def _timed(self, generate: Any) -> Any:
        @functools.wraps(generate)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return generate(*args, **kwargs)
            finally:
                self._generation += now() - start

        return timed

    def _note_optimisation(self, *_: Any) -> None:
        if torch.is_grad_enabled() and not self._optimisation_started:
            self._optimisation_started = now()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        for backbone in backbones():
            backbone.register_forward_pre_hook(self._note_optimisation)
        self._start()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Writes down an update."""
        if state.global_step % self.steps_per_update:
            return
        end = now()
        self.updates.append(
            {
                "total": end - self._started,
                "generation": self._generation,
                "scoring": self._optimisation_started - self._started - self._generation,
                "optimisation": end - self._optimisation_started,
            }
        )
        self.between_updates()
        self._start()

    def between_updates(self) -> None:
        """Do what shall not be timed."""


class Turns(PhaseClock):
    """Waits before every update for a line on standard input, and reports it afterwards."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Counts the weights of all models in memory."""
        tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.nn.Parameter)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        copies = len({backbone.layers[-1].input_layernorm.weight.data_ptr() for backbone in backbones()})
        report({"full_model_copies": copies, "weights_mib": round(sum(storages.values()) / 2**20, 1)})
        sys.stdin.readline()
        super().on_train_begin(*args, **kwargs)

    def between_updates(self) -> None:
        """Reports, and waits."""
        report({phase: round(seconds, 4) for phase, seconds in self.updates[-1].items()})
        sys.stdin.readline()


def backbones() -> list[LlamaModel]:
    """All models in memory."""
    return [module for module in gc.get_objects() if issubclass(type(module), LlamaModel)]


def now() -> float:
    """Seconds on the clock, when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def report(what: dict[str, Any]) -> None:
    """Tell the process that started this one."""
    print("REPORT " + json.dumps(what), flush=True)


def main(settings: dict[str, Any]) -> None:
    """Build the side that `settings` names, and train."""
    side, folder = settings["side"], settings["folder"]
    options = {name: settings[name] for name in ("epochs", "new_tokens")} | {"bf16": side.endswith("_bf16")}
    name = side.removesuffix("_bf16")
    importlib.import_module("trl.experimental.ppo" if name == "trl_1_12" else "rlhf_ext.trainers.ppo")
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    report(versions | {"threads": torch.get_num_threads()})
    sys.stdin.readline()
    if name == "trl_1_12":
        trainer = trl_1_12(folder, **options)
    else:
        trainer = ours(folder, critic=name, reward=settings["reward"], merge=settings["merge"], **options)
    trainer.add_callback(Turns(1 if name == "trl_1_12" else trainer.args.steps_per_batch))
    trainer.train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
