"""Layers of the U-Net: attention across frequency slices and across places, and one resolution of residual blocks."""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ShortSequenceAttnProcessor:
    """Attention over few tokens, but thousands of sequences, for diffusers' `Attention`.

    On a CPU two matrix products take 0.4 of the time of `scaled_dot_product_attention`, made for long sequences.
    """

    def __call__(
        self, attention: Attention, hidden_states: Tensor, encoder_hidden_states: None, attention_mask: None
    ) -> Tensor:
        """Attend among hidden_states (N, K, C), K tokens each; the other arguments are diffusers' and always None."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # (N, heads, K, C/heads)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        if hidden_states.device.type == "cpu":
            weights = (query * attention.scale) @ key.transpose(-1, -2)  # (N, heads, K, K)
            mixed = weights.softmax(-1).to(value.dtype) @ value  # (N, heads, K, C/heads)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        return attention.to_out[0](mixed.transpose(1, 2).flatten(2))  # (N, K, C)


def _self_attention(channels: int, num_heads: int) -> Attention:
    """Make a self-attention whose output is 0 at first."""
    heads = {"heads": num_heads, "dim_head": channels // num_heads}
    attention = Attention(query_dim=channels, **heads, processor=ShortSequenceAttnProcessor())
    nn.init.zeros_(attention.to_out[0].weight)
    nn.init.zeros_(attention.to_out[0].bias)
    return attention


class FrequencyAttention(nn.Module):
    """Self-attention among the K slices at each position; initially the identity, so that stage 2 continues stage 1."""

    def __init__(self, channels: int, embedding_channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.frequency = nn.Linear(embedding_channels, channels)
        self.attention = _self_attention(channels, num_heads)

    def forward(self, hidden: Tensor, frequency_embedding: Tensor) -> Tensor:
        """Mix slices: hidden (B K, C, h, w) and frequency_embedding (K, E) to (B K, C, h, w)."""
        num_bins, (_, channels, height, width) = len(frequency_embedding), hidden.shape
        tokens = self.norm(hidden).unflatten(0, (-1, num_bins))  # (B, K, C, h, w)
        tokens = tokens.permute(0, 3, 4, 1, 2).reshape(-1, num_bins, channels)  # (B h w, K, C)
        tokens = self.attention(tokens + self.frequency(frequency_embedding))  # (B h w, K, C)
        mixed = tokens.view(-1, height, width, num_bins, channels).permute(0, 3, 4, 1, 2)  # (B, K, C, h, w)
        return hidden + mixed.flatten(0, 1)


class SpatialAttention(nn.Module):
    """Self-attention among the positions of each slice; initially the identity."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.attention = _self_attention(channels, num_heads)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix positions of hidden (B K, C, h, w)."""
        tokens = self.norm(hidden).flatten(2).transpose(1, 2)  # (B K, h w, C)
        return hidden + self.attention(tokens).transpose(1, 2).reshape(hidden.shape)


class Level(nn.Module):
    """One resolution on the way down or up: residual blocks, the image condition, attention."""

    def __init__(
        self,
        sources: list[int],  # channels of each residual block's input
        channels: int,  # of their outputs
        embedding: int,  # channels of the embedding of time and frequency
        condition_channels: int,  # of the image features
        num_heads: int,  # of the attentions
        *,
        coordinated: bool,  # with attention across frequencies
        spatial: bool,  # with attention across places
    ) -> None:
        super().__init__()
        options = {"out_channels": channels, "temb_channels": embedding, "groups": 8, "eps": 1e-5}
        self.blocks = nn.ModuleList(ResnetBlock2D(in_channels=source, **options) for source in sources)
        self.condition = nn.Conv2d(condition_channels, channels, 1)
        self.coordination = FrequencyAttention(channels, embedding, num_heads) if coordinated else None
        self.places = SpatialAttention(channels, num_heads) if spatial else None
        self.gradient_checkpointing = False  # set by FrequencyUNet.enable_gradient_checkpointing

    def forward(self, *inputs: Tensor | list[Tensor]) -> list[Tensor]:
        """Run the level; inputs and outputs are those of `_run`."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, use_reentrant=False)
        return self._run(*inputs)

    def _run(
        self, hidden: Tensor, skips: list[Tensor], embedding: Tensor, frequency: Tensor, condition: Tensor
    ) -> list[Tensor]:
        """Return each block's output for hidden (B K, C, h, w), with a skip for each block on the way up."""
        repeats = len(hidden) // len(condition)
        image_features = self.condition(F.adaptive_avg_pool2d(condition, hidden.shape[-2:]))  # (B, C, h, w)
        outputs = []
        for index, block in enumerate(self.blocks):
            hidden = block(torch.cat([hidden, skips[index]], dim=1) if skips else hidden, embedding)
            if index == 0:
                hidden = hidden + image_features.repeat_interleave(repeats, dim=0)
            if index == len(self.blocks) - 1:
                hidden = hidden if self.coordination is None else self.coordination(hidden, frequency)
                hidden = hidden if self.places is None else self.places(hidden)
            outputs.append(hidden)
        return outputs
