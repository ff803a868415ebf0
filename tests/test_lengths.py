"""What `max_length` does to rows: refused where none is left, and said where some are dropped or cut."""

import pytest
from datasets import Dataset

from rlhf_ext.data_checks import DataError
from rlhf_ext.lengths import check_lengths, check_pair_lengths, dropped_report, length_report, truncation_report

ROWS = {
    "plain": {"prompt": "How do I boil an egg?", "chosen": "Use a pot.", "rejected": "No."},
    "conversational": {
        "prompt": [{"role": "user", "content": "How do I boil an egg?"}],
        "chosen": [{"role": "assistant", "content": "Use a pot."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    "implicit": {"chosen": "Q: a? A: b", "rejected": "Q: a? A: c"},
}


@pytest.mark.parametrize("kind", ROWS)
def test_prompts_that_all_fill_max_length(kind, tokenizer):
    dataset = Dataset.from_list([ROWS[kind]])
    check_lengths(dataset, tokenizer, 100, source="pairs.jsonl")
    check_lengths(dataset, tokenizer, None, source="pairs.jsonl")
    with pytest.raises(DataError, match=r"every prompt has at least max_length=2 tokens. Raise --max_length above \d+"):
        check_lengths(dataset, tokenizer, 2, source="pairs.jsonl")


@pytest.mark.parametrize("kind", ROWS)
def test_pairs_that_are_all_longer_than_max_length(kind, tokenizer):
    """The length that the message asks for is the one at which the pair fits, and not before."""
    dataset = Dataset.from_list([ROWS[kind]])
    check_pair_lengths(dataset, tokenizer, None, source="pairs.jsonl")
    with pytest.raises(
        DataError, match=r"every pair is longer than max_length=2 tokens. Raise --max_length to"
    ) as error:
        check_pair_lengths(dataset, tokenizer, 2, source="pairs.jsonl")
    needed = int(str(error.value).partition("--max_length to ")[2].split()[0])
    check_pair_lengths(dataset, tokenizer, needed, source="pairs.jsonl")
    with pytest.raises(DataError):
        check_pair_lengths(dataset, tokenizer, needed - 1, source="pairs.jsonl")


def test_dropped_report_counts_the_rows_that_were_too_long():
    rows = Dataset.from_list([ROWS["plain"]] * 5)
    assert "3 of 5 training rows are longer" in dropped_report(rows, rows.select(range(2)), 7)
    assert dropped_report(rows, rows, 7) is None
    assert dropped_report(rows, rows.select(range(2)), None) is None


def test_conversations_need_a_chat_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(DataError, match="has no chat template"):
        check_lengths(Dataset.from_list([ROWS["conversational"]]), tokenizer, 100, source="pairs.jsonl")


LONG = {"enable_thinking": True}  # for the template below, which spells it out


@pytest.fixture
def template(tokenizer, monkeypatch):
    """A template that a row can make longer, and that refuses one of its roles."""
    text = (
        "{% if enable_thinking %}{{ 'think ' * 100 }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", text)
    return tokenizer


@pytest.mark.parametrize("check", [check_lengths, check_pair_lengths])
def test_keywords_of_a_row_count_for_its_length(check, template):
    check(Dataset.from_list([ROWS["conversational"]]), template, 64, source="pairs.jsonl")
    with pytest.raises(DataError, match="every p"):
        rows = [ROWS["conversational"] | {"chat_template_kwargs": LONG}]
        check(Dataset.from_list(rows), template, 64, source="pairs.jsonl")


@pytest.mark.parametrize("check", [check_lengths, check_pair_lengths])
def test_tools_that_are_no_json_are_refused(check, template):
    rows = [ROWS["conversational"] | {"tools": "[{"}]
    with pytest.raises(DataError, match=r"pairs.jsonl: the chat template refuses .*How do I boil.*Expecting"):
        check(Dataset.from_list(rows), template, 64, source="pairs.jsonl")


@pytest.mark.parametrize("check", [check_lengths, check_pair_lengths])
def test_conversation_that_the_template_refuses(check, template):
    row = ROWS["conversational"] | {"prompt": [{"role": "system", "content": "Be brief."}]}
    with pytest.raises(DataError, match=r"the chat template refuses .*Be brief.*no system role"):
        check(Dataset.from_list([row]), template, 64, source="pairs.jsonl")


@pytest.mark.parametrize(
    ("mode", "lost"), [("keep_start", "and 1 lose the end of a completion."), ("keep_end", "and 1 lose their start.")]
)
def test_truncation_report_counts_dropped_and_cut_rows(mode, lost):
    prepared = Dataset.from_list(
        [
            {"prompt_ids": [1] * 3, "chosen_ids": [1] * 2, "rejected_ids": [1] * 5},
            {"prompt_ids": [1] * 3, "chosen_ids": [1] * 2, "rejected_ids": [1] * 4},
        ]
    )
    given = Dataset.from_list([ROWS["plain"]] * 5)
    note = truncation_report(given, prepared, 7, truncation_mode=mode, rows="evaluation")
    assert "of 5 evaluation rows, 3 are dropped" in note and lost in note
    assert truncation_report(prepared, prepared, 8) is None
    assert truncation_report(prepared, prepared, None) is None


@pytest.mark.parametrize(("mode", "end"), [("keep_start", "end"), ("keep_end", "start")])
def test_length_report_counts_rows_dropped_and_rows_that_fill_it(mode, end):
    rows = Dataset.from_dict({"text": ["a"] * 4})
    prepared = Dataset.from_dict({"input_ids": [[1] * 3, [1] * 5, [1] * 5]})
    note = length_report(rows, prepared, 5, truncation_mode=mode)
    assert "of 4 training rows, 1 are dropped (the prompt alone fills it) and 2 fill it" in note
    assert f"lose their {end}." in note
    assert length_report(rows.select(range(3)), prepared, 6) is None and length_report(rows, prepared, None) is None
