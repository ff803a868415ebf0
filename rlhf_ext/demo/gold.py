"""The gold judge as a TRL reward function: with weight 0 it is logged beside the reward, and nothing learns from it."""

from typing import Any

from rlhf_ext.demo.judge import judge

Message = dict[str, Any]


def gold(prompts: list[list[Message]], completions: list[list[Message] | str], **kwargs: Any) -> list[float]:
    """Return the overall gold score of each completion, from 1 to 5."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [judge(prompt[-1]["content"], text).overall for prompt, text in zip(prompts, texts, strict=True)]
