"""Models without weights, for counting what real sizes would take."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM


class Masked(nn.Module):
    """A model whose 2-D attention mask is made 4-D: from a 2-D one transformers reads values, which the meta device has not."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.device = model, model.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **fields: Any) -> Any:
        batch, length = input_ids.shape
        mask = torch.zeros(batch, 1, length, length, device=self.device)
        return self.model(input_ids=input_ids, attention_mask=mask, **fields)


def llama_3b(layers: int, tied: bool = True) -> Masked:
    """Llama 3.2 3B's shape but for its 28 layers, in fp32 on the meta device."""
    config = AutoConfig.for_model(
        "llama", hidden_size=3072, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=24, num_key_value_heads=8,
        head_dim=128, vocab_size=128256, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return Masked(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
