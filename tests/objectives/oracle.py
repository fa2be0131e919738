"""TRL's GRPOTrainer on a tiny text model: the oracle of our GRPO loss. Only its formulas run, no training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arcvideo.objectives.settings import GrpoSettings

VOCAB, PROMPT, COMPLETIONS = 40, 5, 6
TEMPERATURE, MAX_COMPLETION = 0.7, 9


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Padded completions as TRL keeps them; prompts have no padding."""

    prompt_ids: Tensor
    """(n, PROMPT) int64."""
    completion_ids: Tensor
    """(n, C) int64."""
    mask: Tensor
    """(n, C) int64, 0 behind the end of a completion."""
    old: Tensor
    """(n, C) float32 log-probs."""
    ref: Tensor
    """(n, C) float32 log-probs."""
    advantages: Tensor
    """(n,) float32."""


def tiny_model() -> Any:
    """A Qwen2 model of a few thousand parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        initializer_range=0.5,
    )
    return Qwen2ForCausalLM(config)


def text_tokenizer() -> Any:
    """A tokenizer of words w3, w4, ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")), pad_token="<pad>", eos_token="<eos>"
    )


def trainer(folder: Path) -> Any:
    """A GRPOTrainer whose `_compute_loss` can be called; built once, because imports and set-up take seconds."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=COMPLETIONS,
        gradient_accumulation_steps=1,
        num_generations=COMPLETIONS // 2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_dropout=True,
        max_completion_length=MAX_COMPLETION,
        temperature=TEMPERATURE,
        beta=0.0,
    )
    made = GRPOTrainer(
        model=tiny_model(),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w3 w4"] * COMPLETIONS}),
        processing_class=text_tokenizer(),
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def rollout(*, drift: float, seed: int = 1) -> Rollout:
    """Completions of different length with old and reference log-probs that are `drift` away from the policy's."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 3, 1, 5, 7, 2])
    longest = int(lengths.max())
    ids = torch.randint(3, VOCAB, (COMPLETIONS, PROMPT + longest), generator=generator)
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    completion_ids = ids[:, PROMPT:] * mask
    policy = policy_logprobs(tiny_model(), prompt_ids=ids[:, :PROMPT], completion_ids=completion_ids).detach()
    noise = torch.randn(2, *policy.shape, generator=generator) * drift
    return Rollout(
        prompt_ids=ids[:, :PROMPT],
        completion_ids=completion_ids,
        mask=mask,
        old=policy + noise[0],
        ref=policy + noise[1],
        advantages=torch.randn(COMPLETIONS, generator=generator),
    )


def policy_logits(model: Any, *, prompt_ids: Tensor, completion_ids: Tensor) -> Tensor:
    """(n, C, V) logits that predict each completion token; right padding needs no mask under causal attention."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    return model(input_ids=ids).logits[:, PROMPT - 1 : -1]


def policy_logprobs(
    model: Any, *, prompt_ids: Tensor, completion_ids: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """(n, C) log-probs of the completion tokens."""
    logits = policy_logits(model, prompt_ids=prompt_ids, completion_ids=completion_ids)
    return (logits / temperature).log_softmax(-1).gather(-1, completion_ids[..., None])[..., 0]


def trl_loss(made: Any, rolled: Rollout, *, settings: GrpoSettings) -> Tensor:
    """TRL's loss of one whole generation batch, under our settings of the same names."""
    made.loss_type, made.beta = settings.loss_type, settings.beta
    made.epsilon_low, made.epsilon_high = settings.epsilon, settings.clip_high
    made.args.use_bias_correction_kl = settings.use_bias_correction_kl
    made.importance_sampling_level = settings.importance_sampling_level
    inputs = {
        "prompt_ids": rolled.prompt_ids,
        "prompt_mask": torch.ones_like(rolled.prompt_ids),
        "completion_ids": rolled.completion_ids,
        "completion_mask": rolled.mask,
        "advantages": rolled.advantages,
        "old_per_token_logps": rolled.old,
        "ref_per_token_logps": rolled.ref,
        "num_items_in_batch": rolled.mask.sum(),
    }
    return made._compute_loss(made.model, inputs)


def trl_advantages(made: Any, rewards: Tensor, *, scale_rewards: str) -> Tensor:
    """TRL's advantages for given rewards (COMPLETIONS, functions); generation and reward calls are bypassed."""
    made.scale_rewards, made.beta = scale_rewards, 0.0
    made.reward_funcs = [made.reward_funcs[0]] * rewards.shape[1]
    made.reward_func_names = [f"reward{index}" for index in range(rewards.shape[1])]
    made.reward_weights = torch.ones(rewards.shape[1])
    ids = [[5, 6, 1]] * COMPLETIONS
    made._generate = lambda prompts: (ids, ids, None, ["w5 w6"] * COMPLETIONS, None, {}, None, None)
    made._calculate_rewards = lambda *arguments: rewards
    return made._generate_and_score_completions([{"prompt": "w3 w4"}] * COMPLETIONS)["advantages"]
