"""Which files of a model are meant, beside its name."""

from typing import Any

from transformers import TrainingArguments


def loading_options(args: TrainingArguments) -> dict[str, Any]:
    """Return the `revision` and `trust_remote_code` with which a TRL trainer loads its model."""
    given = args.model_init_kwargs or {}
    trust_remote_code = given.get("trust_remote_code", args.trust_remote_code)
    return {"revision": given.get("revision"), "trust_remote_code": trust_remote_code}
