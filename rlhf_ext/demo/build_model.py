"""Makes the packaged language model: `python -m rlhf_ext.demo.build_model [OUT_DIR]`.

A Llama of 1.7 million parameters learns, from scratch, first what the demo world knows about every topic and then to
answer like its untuned assistant, with all of the bad habits. Everything is seeded; expect some minutes on one core.
"""

import sys
import tempfile
from collections.abc import Iterator

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from rlhf_ext.demo import model_path
from rlhf_ext.demo.data import base_dataset, lesson_dataset

SEED = 0
LESSONS = 8_000
EXAMPLES = 14_000
VOCABULARY = 2048
CONTEXT = 512
PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# Every turn starts with a special token for its role and ends with EOS, so that the tokens of a prompt are always a
# prefix of those of prompt and completion. The generation markers tell SFT which tokens the assistant wrote.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for the texts, with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model for the tokenizer."""
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # Three times the default, which is meant for far wider models: halves the time to train this one.
        initializer_range=0.06,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Dataset, learning_rate: float) -> None:
    """Teaches the model the completions of the examples, in place."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            seed=SEED,
            num_train_epochs=1,
            per_device_train_batch_size=16,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            weight_decay=0.01,
            adam_beta2=0.98,
            max_length=256,
            bf16=False,
            activation_checkpointing=False,
            use_cpu=True,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        SFTTrainer(model, arguments, train_dataset=examples, processing_class=tokenizer).train()


def build(folder: str) -> None:
    """Trains the tokenizer and the model, and saves both."""
    set_seed(SEED)
    examples = base_dataset("train", seed=SEED, size=EXAMPLES)
    texts = (row["prompt"][0]["content"] + " " + row["completion"][0]["content"] for row in examples)
    tokenizer = build_tokenizer(texts)
    model = new_model(tokenizer)
    train(model, tokenizer, lesson_dataset("train", seed=SEED, size=LESSONS), learning_rate=4e-3)
    train(model, tokenizer, examples, learning_rate=1.5e-3)
    model.to(torch.bfloat16).save_pretrained(folder)
    # Half the size on disk, but loaded as float32: many CPUs multiply bfloat16 several times more slowly.
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    build(sys.argv[1] if len(sys.argv) > 1 else model_path())
