"""Talk to the result of `recipes/chatbot_rlhf.py`: base and trained model answer side by side, with their scores."""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .arguments import ArgumentError
from .chatbot import ChatbotArguments
from .generation import Decoding, generate_tokens
from .pipeline import STATE_FILE
from .policy_loading import load_policy
from .reward_model import RewardModel

NEW = "/new"


@dataclass
class Side:
    """One of the two that answer, with the conversation so far as it went on this side."""

    name: str
    model: PreTrainedModel | PeftModel
    without_adapter: bool = False  # the base of a LoRA run is the trained model with its adapter off
    messages: list[dict[str, str]] = field(default_factory=list)

    def _adapter(self) -> AbstractContextManager[Any]:
        return self.model.disable_adapter() if self.without_adapter else nullcontext()

    def answer(self, prompt: str, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> str:
        """Return the answer, and remember both."""
        messages = [*self.messages, {"role": "user", "content": prompt}]
        with self._adapter():
            [(_, completion)] = generate_tokens(self.model, tokenizer, [messages], decoding)
        text = tokenizer.decode(completion, skip_special_tokens=True).strip()
        self.messages = [*messages, {"role": "assistant", "content": text}]
        return text


@dataclass
class Chat:
    """Base and trained model, and the reward model that scores what they say."""

    sides: list[Side]
    tokenizer: PreTrainedTokenizerBase
    reward_model: RewardModel
    decoding: Decoding

    def reply(self, prompt: str) -> list[tuple[str, str, float]]:
        """Return name, answer and score of each side. A question asked again is answered with another seed."""
        replies = []
        for side in self.sides:
            before = list(side.messages)
            text = side.answer(prompt, self.tokenizer, self.decoding)
            user = [*before, {"role": "user", "content": prompt}]
            score = self.reward_model.score((user, [{"role": "assistant", "content": text or "..."}]))
            replies.append((side.name, text, score))
        self.decoding = replace(self.decoding, seed=self.decoding.seed + 1)
        return replies

    def start_again(self) -> None:
        """Forget the conversations."""
        for side in self.sides:
            side.messages = []


def load_chat(output_dir: str, decoding: Decoding) -> Chat:
    """Load what `recipes/chatbot_rlhf.py` left in a folder.

    Raises:
        ArgumentError: It is no such folder, or the run in it is not finished.
    """
    state = Path(output_dir, STATE_FILE)
    if not state.is_file():
        raise ArgumentError(f"{output_dir} holds no run of recipes/chatbot_rlhf.py: there is no {STATE_FILE}.")
    contents = json.loads(state.read_text(encoding="utf-8"))
    settings = {key: value for key, value in contents["settings"].items() if key != "bytes"}
    args = ChatbotArguments(**settings, output_dir=output_dir)
    for phase in ("reward", args.policy_phase):
        if phase not in contents["phases"]:
            raise ArgumentError(f"{output_dir}: the phase {phase} is not finished. Give the command of the run again.")
    quantized = {"load_in_8bit": args.load_in_8bit, "load_in_4bit": args.load_in_4bit}
    trained, tokenizer = load_policy(str(Path(output_dir, args.policy_phase)), **quantized)
    shares_base = isinstance(trained, PeftModel)
    base = trained if shares_base else load_policy(args.base_model, **quantized)[0]
    return Chat(
        [Side("base", base, without_adapter=shares_base), Side("trained", trained)],
        tokenizer,
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
            replies = chat.reply(prompt)
            for name, _, score in replies:
                table.add_column(f"{name}, score {score:+.2f}", ratio=1)
            table.add_row(*(escape(text) for _, text, _ in replies))
            console.print(table)
