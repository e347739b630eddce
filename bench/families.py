"""Families of language models as transformers names them, each small enough to try in a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY = 260  # tokens of every model here
PAD, BEGIN, END = 0, 1, 2

# What a configuration has of these is set to them; which it has differs from family to family.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    "moe_shared_expert_intermediate_size": 24,
}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_GATED_DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

# Model type -> what its configuration needs beside SIZES.
_DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "ministral": _WINDOWED,
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": _WINDOWED,
    "gemma3_text": _WINDOWED,
    "gemma3n_text": {
        **_WINDOWED,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "intermediate_size": [48, 48],
        "activation_sparsity_pattern": [0.0, 0.0],
        "num_kv_shared_layers": 0,
    },
    "gemma4_text": {
        **_WINDOWED,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 0,
    },
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_bigcode": {},
    "opt": {},
    "bloom": {},
    "mpt": {},
    "falcon": {"ffn_hidden_size": 48},
    "stablelm": {},
    "starcoder2": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _WINDOWED,
    "granite": {},
    "cohere": {},
    "cohere2": _WINDOWED,
    "glm": {},
    "glm4": {},
    "exaone4": _WINDOWED,
    "smollm3": {},
    "nemotron": {},
    "persimmon": {},
    "helium": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "apertus": {},
    "arcee": {},
    "seed_oss": {},
    "bitnet": {},
    "biogpt": {},
    "xglm": {},
    "openai-gpt": {},
    "ctrl": {"dff": 48},
    "minicpm3": _LATENT,
    "modernbert-decoder": {},
}
_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "olmoe": {},
    "deepseek_v2": {**_LATENT, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v3": {**_LATENT, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "glm4_moe": {},
    "gpt_oss": _WINDOWED,
    "llama4_text": {"intermediate_size_mlp": 48, "attention_chunk_size": 8},
    "granitemoe": {},
    "phimoe": {},
    "jetmoe": {"kv_channels": 8},
    "ernie4_5_moe": {"moe_k": 2},
    "minimax_m2": {},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
}
_RECURRENT: dict[str, dict[str, Any]] = {
    "rwkv": {"attention_hidden_size": 32},
    "mamba": {},
    "mamba2": {"num_heads": 8, "n_groups": 2, "state_size": 8},
    "falcon_mamba": {},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "xlstm": {"hidden_size": 128},  # its cache needs heads whose sizes are a multiple of 64 together
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    "qwen3_next": _GATED_DELTA,
    "qwen3_5_text": _GATED_DELTA,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
}
_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
# Model type -> the family of its text, and what its configuration needs beside that.
_OF_IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"vision_config": _VISION, "image_token_index": 259, "mm_tokens_per_image": 4}),
    "llama4": (
        "llama4_text",
        {
            "vision_config": {
                **_VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
                "intermediate_size": 128,
            },
            "image_token_index": 259,
        },
    ),
    "mistral3": ("mistral", {"vision_config": {"model_type": "pixtral", **_VISION}, "image_token_index": 259}),
}  # fmt: skip
_OTHERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlnet": {"d_inner": 48},
    "t5": {"d_kv": 8},
    "bart": {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}
FAMILIES = _DENSE | _EXPERTS | _RECURRENT | {name: own for name, (_, own) in _OF_IMAGES.items()} | _OTHERS
GROUPS = {
    "Attention": list(_DENSE),
    "Mixtures of experts": list(_EXPERTS),
    "Recurrent, alone or with attention": list(_RECURRENT),
    "Of images and text, saved whole": list(_OF_IMAGES),
    "Not for this: encoders, and models that need one": list(_OTHERS),
}


def build(family: str, seed: int = 0) -> Any:
    """A random model of a family, on the CPU, in float32 and eval mode.

    Its matrices are ten times those of a usual initialisation, so that what it says differs from token to token.

    Raises:
        KeyError: no such family, here or in the installed transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _config(family, FAMILIES[family])
    kind = AutoModelForCausalLM if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForSeq2SeqLM
    kind = AutoModelForImageTextToText if family in _OF_IMAGES else kind
    torch.manual_seed(seed)
    model = kind.from_config(config)
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.mul_(10.0)
    return model.float().eval()


def _config(family: str, own: Mapping[str, Any]) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    if family in _OF_IMAGES:
        text = _OF_IMAGES[family][0]
        return kind(text_config=_config(text, FAMILIES[text]).to_dict(), **own)
    known = kind().to_dict()
    return kind(**{name: size for name, size in SIZES.items() if name in known} | dict(own))
