"""Chat templates of tokenizers that come without one."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .arguments import ArgumentError
from .errors import first_line


def use_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> None:
    """Give a tokenizer the template that `--chat_template_path` names, if it is set.

    The trainer does so too, but only after the data were checked with the tokenizer.

    Args:
        tokenizer: It is changed.
        path: A file of a template, or whatever has a tokenizer with one.

    Raises:
        ArgumentError: There is no such template.
    """
    if path is None:
        return
    try:
        if path.endswith((".jinja", ".j2")):
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        else:
            tokenizer.chat_template = AutoTokenizer.from_pretrained(path).chat_template
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--chat_template_path {path}: it cannot be loaded ({first_line(error)}).") from error
    if tokenizer.chat_template is None:
        raise ArgumentError(f"--chat_template_path {path}: that tokenizer has no chat template either.")
