"""Held-out prompts of the samples are asked as they are trained on."""

from types import SimpleNamespace

from datasets import Dataset
from transformers import AutoModelForCausalLM

from rlhf_ext.generation import Decoding, generate
from rlhf_ext.run_report.samples import held_out_prompts, sample


def test_prompts_are_asked_with_the_keywords_of_their_rows(model_name, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ style }} {% for m in messages %}{{ m.content }}{% endfor %}")
    model = AutoModelForCausalLM.from_pretrained(model_name)
    trainer = SimpleNamespace(
        model=model,
        processing_class=tokenizer,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
        is_world_process_zero=lambda: True,
    )
    question = [{"role": "user", "content": "How do I boil an egg?"}]
    rows = [{"prompt": question, "chat_template_kwargs": {"style": style}} for style in ("Pot", "Pan " * 40)]
    (prompt, options), *others = held_out_prompts(Dataset.from_list(rows), trainer, 1, 8)
    assert (prompt, options, others) == (question, {"style": "Pot"}, [])
    texts = sample(trainer, [prompt], Decoding(8, temperature=0.0), [options])
    assert texts == generate(
        model, tokenizer, ["Pot How do I boil an egg?"], Decoding(seed=0, max_new_tokens=8, temperature=0.0)
    )
    assert texts != generate(
        model, tokenizer, [" How do I boil an egg?"], Decoding(seed=0, max_new_tokens=8, temperature=0.0)
    )
    monkeypatch.setattr("rlhf_ext.run_report.samples.context_length", lambda model: 40)
    assert len(held_out_prompts(Dataset.from_list(rows), trainer, 2, 8)) == 1  # the other leaves no room
