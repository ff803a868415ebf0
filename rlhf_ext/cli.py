"""The command `rlhf-ext`: `score` texts, `compare` answers, JSON lines out; `chat` with what a run has trained.

rlhf-ext score --model runs/reward --prompt "How do I boil an egg?" " Use a pot." " No idea."
rlhf-ext score --model runs/reward --file answers.jsonl
cat texts.txt | rlhf-ext score --model runs/reward
rlhf-ext compare --model runs/reward --prompt "How do I boil an egg?" " Use a pot." " No idea."
rlhf-ext compare --model runs/reward --file preferences.jsonl
rlhf-ext chat runs/chatbot
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import quiet_libraries

if TYPE_CHECKING:
    from .reward_model.text_scorer import TextScorer

Row = dict[str, Any]
ANSWER_COLUMNS = ("messages", "completion", "response", "text")
PAIR_COLUMNS = (("a", "b"), ("chosen", "rejected"))
OPTION_COLUMNS = ("tools", "chat_template_kwargs")
COMPARISON_COLUMNS = ("preference", "confidence", "score_a", "score_b", "score_diff", "probability")
STANDARD_INPUT = "standard input"


class CommandError(ValueError):
    """What the command was given cannot be used; the message says where and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    from .arguments import ArgumentError
    from .data_checks import DataError  # these imports take seconds, which --help should not
    from .formatting import InputError
    from .output_files import json_line
    from .reward_model.loading import RewardModelError
    from .reward_model.text_scorer import TruncationWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", TruncationWarning)
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            for line in args.run(args):
                print(json_line(line), end="")
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ArgumentError, CommandError, DataError, InputError, RewardModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlhf-ext", description="Reward models and trained chatbots.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    score = commands.add_parser("score", help="Score texts.", formatter_class=argparse.RawDescriptionHelpFormatter)
    score.description = (
        "Score texts. They come as arguments, from a file, or from standard input.\n\n"
        "A line of standard input or of a text file is a text, or a JSON object like the rows of .jsonl, .json, .csv\n"
        "and .parquet files: with 'text', with 'prompt' and 'completion' (or 'response'), or with 'messages'.\n"
        "Each row comes out as it was with its 'score'."
    )
    score.add_argument("texts", nargs="*", metavar="TEXT", help="A text to score; after --prompt, a completion.")
    score.set_defaults(run=_score)
    _add_common(score)

    compare = commands.add_parser("compare", help="Say which of two texts is better.")
    compare.formatter_class = argparse.RawDescriptionHelpFormatter
    compare.description = (
        "Say which of two texts is better. They come as two arguments, from a file, or from standard input.\n\n"
        "Rows are JSON objects, or those of .jsonl, .json, .csv and .parquet files, with 'a' and 'b' (or 'chosen' and\n"
        "'rejected'), and 'prompt' if these are answers to one. Each row comes out as it was with the comparison."
    )
    compare.add_argument("texts", nargs="*", metavar="TEXT", help="The two texts; after --prompt, two completions.")
    compare.set_defaults(run=_compare)
    _add_common(compare)

    chat = commands.add_parser("chat", help="Talk to what recipes/chatbot_rlhf.py has trained.")
    chat.formatter_class = argparse.RawDescriptionHelpFormatter
    chat.description = (
        "Talk to what recipes/chatbot_rlhf.py has trained: base and trained model answer side by side, with the\n"
        "scores of the run's reward model. '/new' begins a new conversation, Ctrl-D ends. Prompts also come as\n"
        "arguments, or from standard input, one a line."
    )
    chat.add_argument("output_dir", help="The run's output folder.")
    chat.add_argument("prompts", nargs="*", metavar="PROMPT", help="Answer these and end.")
    chat.add_argument("--max_new_tokens", type=int, default=128, help="Tokens of an answer at most.")
    chat.add_argument("--temperature", type=float, default=1.0, help="0 always takes the likeliest token.")
    chat.add_argument("--seed", type=int, default=0, help="Another seed gives other answers.")
    chat.set_defaults(run=_chat)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        help="Folder or name on the Hub of a reward model. Give it several times for an ensemble.",
    )
    parser.add_argument("--reduction", choices=["mean", "min", "mean_minus_std"], help="Of an ensemble's scores.")
    parser.add_argument("--prompt", help="What the texts answer.")
    parser.add_argument("--file", help="Read rows from this file; '-' is standard input.")
    parser.add_argument("--batch_size", type=int, help="Texts in a batch at most.")
    parser.add_argument("--max_length", type=int, help="Tokens of a text at most. Default: as in training.")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="Of the weights. Default: as in training."
    )
    parser.add_argument("--device", help="Default: the accelerator, if there is one.")


def _score(args: argparse.Namespace) -> Iterator[Row]:
    """Return each row with its score."""
    column = "text" if args.prompt is None else "completion"
    rows, places = _rows(args, [{column: text} for text in args.texts])
    texts = [_text(row, place) for row, place in zip(rows, places, strict=True)]
    _check_free(rows, places, ["score"])
    scorer = _scorer(args)
    with _named(places):
        scores = scorer.score(texts, batch_size=args.batch_size)
    for row, score in zip(rows, scores, strict=True):
        yield row | {"score": score}


def _compare(args: argparse.Namespace) -> Iterator[Row]:
    """Return each row with its comparison."""
    if args.texts and len(args.texts) != 2:
        raise CommandError(f"compare takes two texts, got {len(args.texts)}. Quote each of them.")
    rows, places = _rows(args, [dict(zip("ab", args.texts, strict=True))] if args.texts else [])
    pairs = [_pair(row, place) for row, place in zip(rows, places, strict=True)]
    _check_free(rows, places, COMPARISON_COLUMNS)
    scorer = _scorer(args)
    with _named(places):
        compared = scorer.compare([a for a, _ in pairs], [b for _, b in pairs], batch_size=args.batch_size)
    for row, comparison in zip(rows, compared, strict=True):
        yield row | comparison


def _chat(args: argparse.Namespace) -> Iterator[Row]:
    """Talk; there are no rows to print."""
    from .chatbot.chat import load_chat, talk
    from .generation import Decoding

    try:
        decoding = Decoding(max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)
    except ValueError as error:
        raise CommandError(str(error)) from error
    talk(load_chat(args.output_dir, decoding), args.prompts or _lines())
    yield from ()


def _lines() -> Iterator[str]:
    """Return lines of standard input as they are typed."""
    while True:
        try:
            yield input("you: " if sys.stdin.isatty() else "")
        except EOFError:
            return


def _scorer(args: argparse.Namespace) -> "TextScorer":
    from .reward_model import RewardModel
    from .reward_model.ensemble import RewardModelEnsemble

    if args.reduction and len(args.model) == 1:
        raise CommandError(f"--reduction {args.reduction} has no effect on one model. Give --model several times.")
    options = {"max_length": args.max_length, "dtype": args.dtype, "device": args.device}
    models = [RewardModel.from_pretrained(path, **options) for path in args.model]
    return models[0] if len(models) == 1 else RewardModelEnsemble(models, args.reduction or "mean")


@contextmanager
def _named(places: Sequence[str]) -> Iterator[None]:
    """Name the place in the user's input where a text cannot be scored."""
    from .formatting import InputError

    try:
        yield
    except InputError as error:
        if error.place.index is None:
            raise
        raise CommandError(f"{places[error.place.index]}: {error.problem}") from error


def _rows(args: argparse.Namespace, given: list[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows to work on, those `given` as arguments or those read, and what to call each in errors."""
    if given and args.file:
        raise CommandError("texts as arguments and --file were both given. Use one of them.")
    if given:
        numbered, source = list(enumerate(given, start=1)), "arguments"
    else:
        numbered, source = list(_read(args.file or "-")), args.file if args.file not in (None, "-") else STANDARD_INPUT
        if not numbered:
            raise CommandError(f"{source}: it holds no rows. Give it at least one.")
    places = [f"{source}, row {number}" for number, _ in numbered]
    rows = [row for _, row in numbered]
    if args.prompt is not None:
        for row, place in zip(rows, places, strict=True):
            if "prompt" in row:
                raise CommandError(f"{place}: it has a prompt of its own. Drop --prompt.")
        rows = [{"prompt": args.prompt} | row for row in rows]
    return rows, places


def _read(name: str) -> Iterator[tuple[int, Row]]:
    """Return numbered rows; a line of standard input, or of a file that is no data file, is a text or a JSON object."""
    from .data_files import is_local, read_rows

    if name != "-" and is_local(name):
        yield from read_rows(name)
        return
    source = STANDARD_INPUT if name == "-" else name
    for number, line in enumerate(_content(name, source).split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.lstrip().startswith(("{", "[{")):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    fix = "Write one object a line, as in .jsonl files, or give the list a name that ends in .json."
                    raise CommandError(f"{source}, row {number}: it is a list. {fix}")
                yield number, row
            except json.JSONDecodeError as error:
                fix = "A line that begins with '{' must be a JSON object."
                raise CommandError(f"{source}, row {number}: it is not valid JSON ({error.msg}). {fix}") from error
        elif line.strip():
            yield number, {"text": line}


def _content(name: str, source: str) -> str:
    if name == "-" and sys.stdin.isatty():
        print("Reading from standard input, one text a line; end with Ctrl-D.", file=sys.stderr)
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{source}: it is not UTF-8 text. Save it as UTF-8.") from error


def _text(row: Row, place: str) -> Row:
    """Return the part of a row that is scored, in the form that `RewardModel.score` takes."""
    if {"chosen", "rejected"} <= set(row):
        raise CommandError(f"{place}: it is a preference pair. Use `rlhf-ext compare`.")
    found = [column for column in ANSWER_COLUMNS if column in row]
    if len(found) != 1:
        has = ", ".join(map(repr, found or row)) or "no columns"
        raise CommandError(f"{place}: it has {has}. It needs one of {', '.join(map(repr, ANSWER_COLUMNS))}.")
    return _answer(row, found[0], place)


def _pair(row: Row, place: str) -> tuple[Row, Row]:
    """Return the two parts of a row that are compared, each in the form that `RewardModel.score` takes."""
    found = [columns for columns in PAIR_COLUMNS if set(columns) <= set(row)]
    if len(found) != 1 or "messages" in row:  # which would have no effect
        has = ", ".join(map(repr, row)) or "no columns"
        raise CommandError(f"{place}: it has {has}. It needs 'a' and 'b', or 'chosen' and 'rejected'.")
    return tuple(_answer(row, column, place) for column in found[0])


def _answer(row: Row, column: str, place: str) -> Row:
    """Return the text in a column of a row, in the form that `RewardModel.score` takes; refuse what is none."""
    from .formatting import InputError, parse

    answer, options = row[column], {name: row[name] for name in OPTION_COLUMNS if row.get(name)}
    if column == "messages" and not isinstance(answer, list):
        problem = "it is no list of messages. A .csv file holds text alone: use .jsonl."
        raise CommandError(f"{place}, column 'messages': {problem}")
    text = {"messages" if isinstance(answer, list) else "text": answer, **options}
    if row.get("prompt") is not None:
        text = {"prompt": row["prompt"], "completion": answer, **options}
    try:
        parse([text])
    except InputError as error:
        raise CommandError(f"{place}, column {column!r}: {error.problem}") from error
    return text


def _check_free(rows: Sequence[Row], places: Sequence[str], columns: Sequence[str]) -> None:
    for row, place in zip(rows, places, strict=True):
        for column in columns:
            if column in row:
                raise CommandError(f"{place}: it already has {column!r}, which is written here. Rename that column.")


if __name__ == "__main__":
    sys.exit(main())
