"""A small CLIP of the world, in the class that the real one uses."""

from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from .tokenizer import LENGTH


def build_clip(vocabulary: int, *, size: int = 48, width: int = 96) -> CLIPModel:
    """A small CLIP.

    Args:
        vocabulary: Number of tokens.
        size: Pixels a side.
        width: Features of a token of either tower.

    Returns:
        The model, randomly initialised.
    """
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        # Places in `SPECIAL`. The end must not be 2: for that number transformers 5.23 pools the
        # text at the largest token, as CLIP's vocabulary wants it, here at some word.
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=size,
        patch_size=8,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )
