"""A Gemma 3 with a vision tower, as the hub has it from 4B up, and small: the words of the tiny model's tokenizer."""

import torch
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TOWER = ("model.vision_tower.", "model.multi_modal_projector.")


def config_for(tokenizer):
    text = TEXT | {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=3)


def save_gemma3_with_vision(tokenizer_folder, folder):
    """Write the model, with no weight at 0, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config_for(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
