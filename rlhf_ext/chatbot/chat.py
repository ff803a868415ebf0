"""Talk to the result of `recipes/chatbot_rlhf.py`: base and trained model answer side by side, with their scores."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..arguments import ArgumentError
from ..formatting import InputError
from ..generation import Decoding, generate_tokens
from ..policy_loading import load_policy
from ..reward_model import RewardModel
from .phases import ChatbotArguments
from .pipeline import read_state

NEW = "/new"


@dataclass
class Side:
    """One of the two that answer, with the conversation so far as it went on this side."""

    name: str
    model: PreTrainedModel | PeftModel
    without_adapter: bool = False  # the base of a LoRA run is the trained model with its adapter off
    best_of: int = 1  # answers of which the reward model chooses one
    messages: list[dict[str, str]] = field(default_factory=list)

    def _adapter(self) -> AbstractContextManager[Any]:
        return self.model.disable_adapter() if self.without_adapter else nullcontext()

    def answer(
        self, prompt: str, tokenizer: PreTrainedTokenizerBase, reward_model: RewardModel, decoding: Decoding
    ) -> tuple[str, float]:
        """Return the answer and its score.

        Raises:
            InputError: The conversation is longer than the model can read.
        """
        asked = [[*self.messages, {"role": "user", "content": prompt}]] * self.best_of
        with self._adapter():
            written = generate_tokens(self.model, tokenizer, asked, decoding)
        texts = [tokenizer.decode(completion, skip_special_tokens=True).strip() for _, completion in written]
        scores = reward_model(asked, texts)
        best = max(range(self.best_of), key=scores.__getitem__)
        return texts[best], scores[best]

    def remember(self, prompt: str, text: str) -> None:
        """Go on from here."""
        self.messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


@dataclass
class Chat:
    """Base and trained model, and the reward model that scores what they say."""

    sides: list[Side]
    tokenizer: PreTrainedTokenizerBase
    reward_model: RewardModel
    decoding: Decoding

    def reply(self, prompt: str) -> list[tuple[str, str, float]]:
        """Return name, answer and score of each side. A question asked again is answered with another seed.

        Raises:
            InputError: The conversation is longer than a model can read; it is left as it was.
        """
        answers = [side.answer(prompt, self.tokenizer, self.reward_model, self.decoding) for side in self.sides]
        for side, (text, _) in zip(self.sides, answers, strict=True):
            side.remember(prompt, text)
        self.decoding = replace(self.decoding, seed=self.decoding.seed + 1)
        return [(side.name, *answer) for side, answer in zip(self.sides, answers, strict=True)]

    def start_again(self) -> None:
        """Forget the conversations."""
        for side in self.sides:
            side.messages = []


def load_chat(output_dir: str, decoding: Decoding) -> Chat:
    """Load what `recipes/chatbot_rlhf.py` left in a folder.

    Raises:
        ArgumentError: It is no such folder, or the run in it is not finished.
    """
    state = read_state(Path(output_dir))
    known = {option.name for option in fields(ChatbotArguments)}
    args = ChatbotArguments(**{key: value for key, value in state["settings"].items() if key in known})
    for phase in ("reward", args.policy_phase):
        if phase not in state["phases"]:
            raise ArgumentError(f"{output_dir}: the phase {phase} is not finished. Give the command of the run again.")
    quantized = {"load_in_8bit": args.load_in_8bit, "load_in_4bit": args.load_in_4bit}
    trained, tokenizer = load_policy(str(Path(output_dir, args.policy_phase)), **quantized)
    shares_base = isinstance(trained, PeftModel)
    base = trained if shares_base else load_policy(args.base_model, **quantized)[0]
    return Chat(
        [Side("base", base, without_adapter=shares_base), Side("trained", trained, best_of=args.answers)],
        tokenizer,  # a base without chat template is asked with the one it was trained with
        RewardModel.from_pretrained(Path(output_dir, "reward"), show_progress=False),
        decoding,
    )


def talk(chat: Chat, prompts: Iterable[str]) -> None:
    """Answer one prompt after the other; `/new` begins a new conversation."""
    console = Console()
    for prompt in prompts:
        if prompt.strip() == NEW:
            chat.start_again()
            console.print("A new conversation.")
        elif prompt.strip():
            table = Table(title=escape(prompt), title_justify="left", expand=True, show_lines=False)
            try:
                replies = chat.reply(prompt)
            except InputError as error:
                problem = f"This cannot be answered: {error.problem} {NEW} begins a new conversation."
                console.print(escape(problem), style="bold")
                continue
            for name, _, score in replies:
                table.add_column(f"{name}, score {score:+.2f}", ratio=1)
            table.add_row(*(escape(text) for _, text, _ in replies))
            console.print(table)
