"""Texts become the token ids that TRL's RewardTrainer would train on, and what is no text is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_encoders
import trl
from datasets import Dataset
from tokenizers.normalizers import BertNormalizer
from transformers import AddedToken, AutoTokenizer

from rlhf_ext.data import check_preferences
from rlhf_ext.data_files import read_rows
from rlhf_ext.formatting import InputError, check_says_something, count_prompt_tokens, parse, parse_answers, tokenize
from rlhf_ext.output_files import write_jsonl

QUESTION = [{"role": "user", "content": "How do I boil an egg?"}]
ANSWER = [{"role": "assistant", "content": "In a pot of water."}]
OTHER = [{"role": "assistant", "content": "No idea."}]
TOOLS = [{"type": "function", "function": {"name": "boil", "description": "Boils.", "parameters": {}}}]
CALL = [
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "boil", "arguments": {}}}]},
    {"role": "tool", "name": "boil", "content": "done"},
    *ANSWER,
]


@pytest.fixture(scope="module")
def with_tools(model_name):
    """The demo's tokenizer with a template that shows tools, calls and a keyword of its own."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.chat_template = (
        "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% if terse %}short{% endif %}"
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content or (m.tool_calls | tojson) }}{{ eos_token }}"
        "{% endfor %}"
    )
    return tokenizer


@pytest.fixture(scope="module")
def encoder_tokenizer():
    return tiny_encoders.tokenizer(eos_token="[SEP]")  # as RewardTrainer sets it for encoders


def as_trl_does(row, tokenizer):
    args = SimpleNamespace(dataset_num_proc=None, max_length=None)
    dataset = trl.RewardTrainer._prepare_dataset(None, Dataset.from_list([row]), tokenizer, args, "train")
    return [dataset[0]["chosen_ids"], dataset[0]["rejected_ids"]]


def ours(texts, tokenizer):
    return tokenize(parse(texts)[0], tokenizer)


@pytest.mark.parametrize("end", ["", "<|end|>"])
def test_plain_text_equals_trl(end, tokenizer):
    row = {"chosen": "How do I boil an egg? Use a pot." + end, "rejected": "How do I boil an egg? No."}
    assert ours([row["chosen"], row["rejected"]], tokenizer) == as_trl_does(row, tokenizer)


@pytest.mark.parametrize("end", ["", "<|end|>"])
def test_prompt_and_completion_equal_trl(end, tokenizer):
    row = {"prompt": "How do I boil an egg?", "chosen": " Use a pot." + end, "rejected": "No."}
    expected = as_trl_does(row, tokenizer)
    assert ours([(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])], tokenizer) == expected
    rows = [{"prompt": row["prompt"], "completion": row[side]} for side in ("chosen", "rejected")]
    assert ours(rows, tokenizer) == expected


def test_conversations_equal_trl(tokenizer):
    explicit = {"prompt": QUESTION, "chosen": ANSWER, "rejected": OTHER}
    implicit = {"chosen": QUESTION + ANSWER, "rejected": QUESTION + OTHER}
    expected = as_trl_does(explicit, tokenizer)
    assert expected == as_trl_does(implicit, tokenizer)
    for texts in (
        [QUESTION + ANSWER, QUESTION + OTHER],
        [(QUESTION, ANSWER), (QUESTION, OTHER)],
        [(QUESTION, ANSWER[0]["content"]), (QUESTION, OTHER[0]["content"])],
        [{"messages": QUESTION + ANSWER}, {"prompt": QUESTION, "completion": OTHER}],
    ):
        assert ours(texts, tokenizer) == expected


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_template_keywords_equal_trl(as_text, with_tools):
    row = {"prompt": QUESTION, "chosen": CALL, "rejected": OTHER}
    options = {"tools": json.dumps(TOOLS) if as_text else TOOLS, "chat_template_kwargs": {"terse": True}}
    expected = as_trl_does(row | options, with_tools)
    texts = [{"prompt": QUESTION, "completion": row[side], **options} for side in ("chosen", "rejected")]
    assert ours(texts, with_tools) == expected
    assert ours([(QUESTION, OTHER)], with_tools)[0] != expected[1]


def test_trl_renders_tools_and_calls_as_the_file_has_them(tmp_path, with_tools):
    """Each row its own, without those of other rows as nulls."""
    rows = []
    for name, arguments in (("boil", {"minutes": 5}), ("buy", {"what": "eggs", "from": {"shop": "5"}})):
        parameters = {"type": "object", "properties": {key: {"type": "string"} for key in arguments}}
        tools = [{"type": "function", "function": {"name": name, "parameters": parameters}}]
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        chosen = [{"role": "assistant", "tool_calls": calls}, *ANSWER]
        rows.append({"prompt": QUESTION, "chosen": chosen, "rejected": OTHER, "tools": tools})
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(Path(path), rows)
    pairs = check_preferences(read_rows(path), path)
    expected = ours([{"messages": QUESTION + row["chosen"], "tools": row["tools"]} for row in rows], with_tools)

    args = SimpleNamespace(dataset_num_proc=2, max_length=None)
    prepared = trl.RewardTrainer._prepare_dataset(None, pairs, with_tools, args, "train")
    assert [*prepared["chosen_ids"]] == expected
    trainer = SimpleNamespace(_tokenizer=with_tools, _is_vlm=False, chat_template=None, completion_only_loss=False)
    prepared = trl.DPOTrainer._prepare_dataset(trainer, pairs, with_tools, args, "train")
    assert [row["prompt_ids"] + row["chosen_ids"] for row in prepared] == expected
    demonstrations = pairs.rename_column("chosen", "completion").remove_columns("rejected")
    args = SimpleNamespace(**vars(args), assistant_only_loss=False, dataset_text_field="text", shuffle_dataset=False)
    prepared = trl.SFTTrainer._prepare_dataset(trainer, demonstrations, with_tools, args, False, None, "train")
    assert [*prepared["input_ids"]] == expected


def test_encoder_equals_trl(encoder_tokenizer):
    row = {"prompt": "how do i boil an egg ?", "chosen": " boil an egg .", "rejected": " no idea ."}
    texts = [(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])]
    ids = ours(texts, encoder_tokenizer)
    assert ids == as_trl_does(row, encoder_tokenizer)
    assert ids[0][0] == encoder_tokenizer.cls_token_id


def test_tokenizer_without_end_token_adds_none():
    tokenizer = tiny_encoders.tokenizer()
    assert tokenizer.eos_token is None
    assert tokenizer.decode(ours("no idea", tokenizer)[0]) == "[CLS] no idea [SEP]"


def test_texts_of_different_kinds_keep_their_order(tokenizer):
    texts = ["one", QUESTION + ANSWER, ("two ", "three"), (QUESTION, OTHER)]
    together = ours(texts, tokenizer)
    assert together == [ours([text], tokenizer)[0] for text in texts]


@pytest.mark.parametrize(
    ("texts", "single"),
    [
        ("a", True),
        (("a", "b"), True),
        (QUESTION + ANSWER, True),
        ((QUESTION, ANSWER), True),
        ({"text": "a"}, True),
        (["a"], False),
        ([("a", "b")], False),
        ((("a", "b"), ("c", "d")), False),
        ([QUESTION], False),
        ([["a", "b"]], False),  # a pair as JSON has it
        (Dataset.from_list([{"x": "a"}, {"x": "b"}])["x"], False),
    ],
)
def test_one_text_and_several_are_told_apart(texts, single):
    assert parse(texts)[1] is single


def test_shared_prompts_have_equal_keys(tokenizer):
    keys = [example.prompt_key() for example in parse([("a", "b"), ("a", "c"), ("d", "b"), "a", ("", "a")])[0]]
    assert keys[0] == keys[1] != keys[2] and keys[3] is None and keys[4] is None
    first, second, third = parse(
        [(QUESTION, ANSWER), QUESTION + OTHER, {"prompt": QUESTION, "completion": OTHER, "tools": TOOLS}]
    )[0]
    assert first.prompt_key() == second.prompt_key() != third.prompt_key()
    assert parse([ANSWER])[0][0].prompt_key() is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "^it is None"),
        ([], "^the list of texts is empty"),
        (3, "^it is a int"),
        (b"a", "^it is a bytes"),
        ({"a", "b"}, "^it is a set"),
        (["a", None], r"^row 2 \(texts\[1\]\): it is None"),
        (["a", 3.5], r"^row 2 \(texts\[1\]\): it is a float"),
        (["a", []], r"^row 2 \(texts\[1\]\): it is empty"),
        (("a", "b", "c"), "^a tuple of 3. A pair is"),
        (("a", None), "^a pair of str and None"),
        ([("a", QUESTION)], r"^row 1 \(texts\[0\]\): a pair of str and list"),
        ({"prompt": "a"}, "^it has the keys 'prompt'"),
        ({"text": 1}, "^'text' is a int"),
        (["a", "b\ud83d"], r"^row 2 \(texts\[1\]\): it holds '\\ud83d', half of a character .* Write the whole"),
        ([("a", "b"), [*QUESTION, {"role": "assistant", "content": "\ude00"}]], r"^row 2 .*: it holds '\\ude00'"),
        ({"messages": "a"}, "^'messages' is a str"),
        ({"prompt": "a", "completion": "b", "tools": TOOLS}, "^tools would have no effect on plain text"),
        ([[*QUESTION, "b"]], r"^row 1 .*'b' is not a message"),
        ([[{"role": "user", "content": None}]], r"^row 1 .*role 'user' is None, not text"),
    ],
)
def test_what_is_no_text_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        parse(texts)


def test_error_is_a_type_error_and_a_value_error():
    with pytest.raises(TypeError):
        parse(None)
    with pytest.raises(ValueError):
        parse(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^it is empty"),
        (" \n", "^it is empty"),
        ("<|pad|><|pad|> <|end|>", "^it holds only padding or special tokens"),
        (("a prompt", ""), "^the completion is empty"),
        (("a prompt", "<|end|>"), "^the completion holds only padding or special tokens"),
        ([*QUESTION, {"role": "assistant", "content": ""}], "^the completion is empty"),
        ([{"role": "user", "content": "<|pad|>"}], "^it holds only padding"),
    ],
)
def test_text_that_says_nothing_is_refused(text, message, tokenizer):
    with pytest.raises(InputError, match=message):
        check_says_something(parse(text)[0], tokenizer)


def test_empty_completion_is_accepted_where_a_policy_made_it(tokenizer):
    check_says_something(parse(("a prompt", ""))[0], tokenizer, allow_empty_completion=True)
    with pytest.raises(InputError, match=r"^it is empty"):
        check_says_something(parse(("", ""))[0], tokenizer, allow_empty_completion=True)


def test_letters_unknown_to_the_tokenizer_are_a_text(encoder_tokenizer):
    check_says_something(parse("[UNK]")[0], encoder_tokenizer)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \x00\x01", ("a prompt", "\u200b")])
def test_text_of_which_the_tokenizer_makes_nothing_is_refused(text, encoder_tokenizer):
    check_says_something(parse(text)[0], encoder_tokenizer)  # a word that it does not know
    strict = tiny_encoders.tokenizer()
    strict.backend_tokenizer.normalizer = BertNormalizer()
    with pytest.raises(InputError, match="holds only padding or special tokens, or what the tokenizer drops"):
        check_says_something(parse(text)[0], strict)


def test_special_tokens_that_have_no_name_of_their_own_say_nothing(model_name):
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("<word>", special=False)])
    assert "<turn>" not in tokenizer.all_special_tokens
    with pytest.raises(InputError, match=r"row 2 .*holds only padding or special tokens"):
        check_says_something(parse(["<turn> <word>", "<turn> <turn>"])[0], tokenizer)
    check_says_something(parse(" " * 300 + "<turn> a")[0], tokenizer)


def test_call_of_a_tool_is_a_text(tokenizer):
    check_says_something(parse([*QUESTION, CALL[0]])[0], tokenizer)


def test_conversation_needs_a_template(encoder_tokenizer):
    with pytest.raises(InputError, match=r"row 2 .*the tokenizer has no chat template"):
        ours(["a", QUESTION], encoder_tokenizer)


def test_refusal_of_the_template_names_the_row(model_name):
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.chat_template = "{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}"
    with pytest.raises(InputError, match=r"row 2 .*refuses the conversation \(roles must alternate\)"):
        ours(["a", QUESTION], tokenizer)


def test_prompt_tokens_are_those_before_the_completion(tokenizer, encoder_tokenizer):
    for text in (("How do I boil an egg?", " Use a pot."), (QUESTION, ANSWER)):
        example = parse(text)[0][0]
        ids, count = ours(text, tokenizer)[0], count_prompt_tokens(example, tokenizer)
        assert "Use a pot" in tokenizer.decode(ids[count:]) or "In a pot" in tokenizer.decode(ids[count:])
        assert "egg" in tokenizer.decode(ids[:count]) and "pot" not in tokenizer.decode(ids[:count])
    assert count_prompt_tokens(parse("a")[0][0], tokenizer) == 0
    example = parse(("how do i", " boil an egg"))[0][0]
    ids, count = (
        ours(("how do i", " boil an egg"), encoder_tokenizer)[0],
        count_prompt_tokens(example, encoder_tokenizer),
    )
    assert encoder_tokenizer.convert_ids_to_tokens(ids[:count]) == ["[CLS]", "how", "do", "i"]  # and no [SEP]


def test_answers_to_one_prompt():
    for answers, prompt in ((["a", "b"], "p"), ([ANSWER, OTHER], QUESTION), (["a", "b"], QUESTION)):
        examples, single = parse_answers(answers, prompt, "texts")
        assert not single and len(examples) == 2 and {example.prompt_key() for example in examples} != {None}
    for answer, prompt in (("a", "p"), (ANSWER, QUESTION), ("a", QUESTION)):
        assert parse_answers(answer, prompt, "a")[1]
    with pytest.raises(InputError, match="list of texts is empty"):
        parse_answers([], "p", "texts")
    with pytest.raises(InputError, match=r"^a: it is a int"):
        parse_answers(3, "p", "a")
    with pytest.raises(InputError, match=r"^a: it is None"):
        parse_answers(None, "p", "a")
