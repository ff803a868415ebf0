"""The phases of `recipes/chatbot_rlhf.py`: which recipe runs with which options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arguments import ArgumentError, check_quantization
from ..output_files import sha256
from .data import config_path, held_out_path, train_path
from .pipeline import CONTENTS, RECIPES, Phase

OUTPUT_DIR = "runs/chatbot"
ALGORITHMS = ("ppo", "dpo", "best_of_n")
BEST_OF = 8
CHAT_TEMPLATE = RECIPES / "configs/plain_chat.jinja"  # for models without one, such as gpt2
# The settings that what a phase leaves depends on; the comparison at the end depends on all of them. LIMIT is added to
# those of the phases that it reaches: a reward model is calibrated on the rows that are held out.
LIMIT = "max_eval_samples"
EVERYWHERE = ("model_name", "batch_size", "use_peft", "load_in_8bit", "load_in_4bit", "seed")
SFT = (*EVERYWHERE, "sft_dataset", "sft_config")
REWARD = (*EVERYWHERE, "preference_dataset", "reward_config")
PPO = (*SFT, *REWARD, "algorithm", "ppo_epochs", "prompt_dataset", "policy_config")
DPO = (*SFT, "algorithm", "preference_dataset", "policy_config")
# A fifth of a phase is repeated at most after an interruption; the checkpoint before the last is kept in case the last
# one is damaged.
CHECKPOINTS = ("--save_strategy", "steps", "--save_steps", "0.2", "--save_total_limit", "2")


@dataclass
class ChatbotArguments:
    """The model, the algorithm, the data of each phase, and where the results go."""

    model_name: str | None = field(
        default=None, metadata={"help": "Folder or name on the Hub of any language model. Default: the embedded one."}
    )
    algorithm: str = field(default="ppo", metadata={"help": "How the policy is trained.", "choices": ALGORITHMS})
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Examples per device in a training step, in every phase, unless its YAML file says."},
    )
    ppo_epochs: int | None = field(default=None, metadata={"help": "Epochs of PPO over a batch of answers."})
    best_of: int | None = field(default=None, metadata={"help": "Answers that best_of_n chooses from. Default: 8."})
    sft_dataset: str | None = field(
        default=None, metadata={"help": "Demonstrations: Hub or local file. Default: the embedded ones."}
    )
    preference_dataset: str | None = field(
        default=None,
        metadata={"help": "Preference pairs, for the reward model and for dpo. Default: the embedded ones."},
    )
    prompt_dataset: str | None = field(
        default=None, metadata={"help": "Prompts, for ppo and for the evaluation. Default: the embedded ones."}
    )
    eval_prompt_dataset: str | None = field(
        default=None, metadata={"help": "Prompts for the evaluation that ppo does not train on."}
    )
    sft_config: str | None = field(default=None, metadata={"help": "YAML file with options of recipes/sft.py."})
    reward_config: str | None = field(default=None, metadata={"help": "YAML file with options of recipes/reward.py."})
    policy_config: str | None = field(
        default=None, metadata={"help": "YAML file with options of recipes/ppo.py or recipes/dpo.py."}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "Rows of each evaluation at most, in the phases that train too, unless their YAML file says. The "
            "embedded model trained on the embedded data keeps its own numbers there."
        },
    )
    use_peft: bool = field(
        default=False, metadata={"help": "LoRA: policy, reference, critic and reward model are adapters of one base."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantize the base to 8 bit; needs use_peft."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantize the base to 4 bit; needs use_peft."})
    seed: int = field(default=42, metadata={"help": "Of every phase."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Each phase gets a folder in it. Default: runs/chatbot, with a number where that is taken."},
    )

    def __post_init__(self) -> None:
        """Refuse options that would have no effect, before anything runs."""
        if self.algorithm != "ppo" and self.ppo_epochs is not None:
            raise ArgumentError(f"--ppo_epochs has no effect with --algorithm {self.algorithm}.")
        if self.algorithm == "best_of_n" and self.policy_config is not None:
            raise ArgumentError("--policy_config has no effect with --algorithm best_of_n, which trains no policy.")
        check_quantization(self.load_in_8bit, self.load_in_4bit)
        if (self.load_in_8bit or self.load_in_4bit) and not self.use_peft:
            raise ArgumentError("a quantized base is frozen, so there is nothing to train: add --use_peft.")
        if self.algorithm != "best_of_n" and self.best_of is not None:
            raise ArgumentError(f"--best_of has no effect with --algorithm {self.algorithm}.")
        if self.best_of is not None and self.best_of < 2:
            raise ArgumentError(f"--best_of {self.best_of}: there must be at least 2 answers to choose from.")
        data = (self.sft_dataset, self.preference_dataset, self.prompt_dataset)
        if any(data) and not all(data):
            raise ArgumentError(
                "--sft_dataset, --preference_dataset and --prompt_dataset: name all three or none. The embedded demo "
                "is a world of its own, and mixing it with other data teaches nothing."
            )
        if self.eval_prompt_dataset is not None and self.prompt_dataset is None:
            raise ArgumentError("--eval_prompt_dataset has no effect on the embedded demo, which holds out prompts.")

    @property
    def is_demo(self) -> bool:
        """Whether the data are the embedded ones, which have a gold judge."""
        return self.prompt_dataset is None

    @property
    def base_model(self) -> str:
        """Folder or name of the model that everything starts from."""
        from ..demo import model_path

        return self.model_name or model_path()

    @property
    def policy_phase(self) -> str:
        """The phase whose model is the result."""
        return "sft" if self.algorithm == "best_of_n" else self.algorithm

    @property
    def answers(self) -> int:
        """Answers of the result to a prompt, of which the reward model chooses one."""
        return (self.best_of or BEST_OF) if self.algorithm == "best_of_n" else 1

    @property
    def config_files(self) -> dict[str, str]:
        """The YAML files that are named, by phase."""
        files = {"sft": self.sft_config, "reward": self.reward_config, self.algorithm: self.policy_config}
        return {phase: path for phase, path in files.items() if path is not None}

    def settings(self) -> dict[str, Any]:
        """Return what makes two runs the same, with the hash of each local file in case one is changed."""
        settings = {name: value for name, value in vars(self).items() if name != "output_dir"}
        named = {name: Path(value).expanduser() for name, value in settings.items() if isinstance(value, str)}
        return settings | {f"{CONTENTS}{name}": sha256(path) for name, path in named.items() if path.is_file()}


def phases(
    args: ChatbotArguments, *, has_chat_template: bool, configs: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Phase]:
    """Return the phases of a run.

    Args:
        args: The command line, with an output folder.
        has_chat_template: Whether the model's tokenizer has one; a plain one is given to those that do not.
        configs: What the YAML files of the phases hold, as `read_configs` returns it.
    """
    configs = configs or {}
    template = [] if has_chat_template else ["--chat_template_path", str(CHAT_TEMPLATE)]
    model = [] if args.model_name is None else ["--model_name_or_path", args.model_name]
    sft = [*_data_options(args, "sft"), *model, *template, *_common(args, "sft", configs)]
    reward = [*_data_options(args, "reward"), *model, *template, *_common(args, "reward", configs)]
    limit = {name: (LIMIT,) if _is_limited(args, name, configs) else () for name in ("sft", "reward", args.algorithm)}
    found = [
        Phase("sft", "sft.py", tuple(sft), settings=(*SFT, *limit["sft"])),
        Phase("reward", "reward.py", tuple(reward), settings=(*REWARD, *limit["reward"])),
    ]
    if args.algorithm != "best_of_n":
        options = [*_policy_options(args), *_common(args, args.algorithm, configs)]
        before = (*PPO, *limit["sft"], *limit["reward"]) if args.algorithm == "ppo" else (*DPO, *limit["sft"])
        settings = (*before, *limit[args.algorithm])
        found.append(Phase(args.algorithm, f"{args.algorithm}.py", tuple(options), settings=settings))
    if args.is_demo:
        evaluation = ["--model", _in(args, "reward"), *_option("max_samples", args.max_eval_samples)]
        settings = (*REWARD, LIMIT)
        found.append(Phase("reward-evaluation", "evaluate.py", tuple(evaluation), trains=False, settings=settings))
    evaluation = tuple(_evaluation_options(args))
    return [*found, Phase("evaluation", "evaluate.py", evaluation, trains=False, settings=tuple(vars(args)))]


def _data_options(args: ChatbotArguments, phase: str) -> list[str]:
    """Return the options of a phase about its YAML file and its data."""
    config = args.config_files.get(phase)
    if config is None and phase == args.algorithm and args.is_demo and args.model_name is None:
        config = str(RECIPES / f"configs/{phase}_chatbot_demo.yaml")
    elif config is not None and not args.is_demo:
        config = config_path(args.output_dir, phase)
    data = [] if args.is_demo else ["--dataset_name", train_path(args.output_dir, phase)]
    held_out = [] if args.is_demo else ["--eval_dataset_name", held_out_path(args.output_dir, phase)]
    return [*_option("config", config), *data, *held_out]


def _policy_options(args: ChatbotArguments) -> list[str]:
    options = [*_data_options(args, args.algorithm), "--model_name_or_path", _in(args, "sft")]
    if args.algorithm == "dpo":
        return options
    options += _option("num_iterations", args.ppo_epochs)
    reward = _in(args, "reward")
    if args.use_peft:  # one base for policy, reference, critic and reward model
        return [*options, "--reward_adapter", reward, "--critic", "adapter", "--critic_path", reward]
    return [*options, "--reward_model", reward]


def _evaluation_options(args: ChatbotArguments) -> list[str]:
    options = ["--policy", _in(args, args.policy_phase), "--other_policy", args.base_model, *_quantization(args)]
    options += ["--judge", "gold" if args.is_demo else _in(args, "reward"), "--seed", str(args.seed)]
    if args.algorithm == "best_of_n":
        options += ["--best_of", str(args.answers), "--best_of_model", _in(args, "reward")]
    options += _option("max_samples", args.max_eval_samples)
    return [*options, *_option("dataset_name", args.eval_prompt_dataset or args.prompt_dataset)]


def _is_limited(args: ChatbotArguments, phase: str, configs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether --max_eval_samples reaches a phase that trains, where nothing nearer to the phase has a number."""
    if args.is_demo and args.model_name is None and (phase != args.algorithm or phase not in args.config_files):
        return False  # so that what the demo trains does not follow from how it is evaluated
    return LIMIT not in configs.get(phase, {})


def _common(args: ChatbotArguments, phase: str, configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the options that every phase of training gets."""
    options, chosen = [], configs.get(phase, {})
    if args.use_peft:
        modules = [] if "lora_target_modules" in chosen else ["--lora_target_modules", "all-linear"]
        options = ["--use_peft", *modules, *_quantization(args)]
    if "per_device_train_batch_size" not in chosen:
        options += _option("per_device_train_batch_size", args.batch_size)
    if args.is_demo and _is_limited(args, phase, configs):  # data of one's own are limited in their files
        options += _option(LIMIT, args.max_eval_samples)
    return [*options, "--seed", str(args.seed), *CHECKPOINTS]


def _quantization(args: ChatbotArguments) -> list[str]:
    return [f"--{name}" for name in ("load_in_8bit", "load_in_4bit") if getattr(args, name)]


def _option(name: str, value: Any) -> list[str]:
    return [] if value is None else [f"--{name}", str(value)]


def _in(args: ChatbotArguments, phase: str) -> str:
    return str(Path(args.output_dir, phase))
