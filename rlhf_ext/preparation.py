"""One repair of how Accelerate prepares a model, which training in several processes needs."""

from transformers import Trainer


def prepare_for_training(trainer: Trainer) -> None:
    """Let training prepare a model that an evaluation before it has prepared.

    Accelerate prepares a model once, and for an evaluation without `DistributedDataParallel`. Training would take it as
    it is, and every process would learn from its own rows alone, without an error.

    Args:
        trainer: Any trainer of Transformers or TRL. One that has trained already, or is sharded, stays as it is.
    """
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return
    model = trainer.model
    if trainer.model_wrapped is not model:
        return
    if any(prepared is model for prepared in accelerator._models):
        accelerator._models = [prepared for prepared in accelerator._models if prepared is not model]
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # mixed precision is added again
        vars(model).pop("_is_accelerate_prepared", None)
