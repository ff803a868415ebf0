"""`--chat_template_path`: a file, another model, nothing."""

import pytest
from transformers import AutoTokenizer

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.chat_templates import use_chat_template

QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def bare(model_name):
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.chat_template = None
    return tokenizer


def test_a_file_another_model_or_nothing(bare, model_name, tokenizer, tmp_path):
    use_chat_template(bare, None)
    assert bare.chat_template is None
    use_chat_template(bare, model_name)
    assert bare.chat_template == tokenizer.chat_template
    (tmp_path / "mine.jinja").write_text("Say: {{ messages[0]['content'] }}")
    use_chat_template(bare, str(tmp_path / "mine.jinja"))
    assert bare.apply_chat_template(QUESTION, tokenize=False) == "Say: Hi"


def test_what_has_no_template_is_refused(bare, tmp_path):
    with pytest.raises(ArgumentError, match=r"--chat_template_path no.jinja: it cannot be loaded \(.*No such file"):
        use_chat_template(bare, "no.jinja")
    bare.save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="has no chat template either"):
        use_chat_template(bare, str(tmp_path))
