# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn


class Tiny(nn.Module):
    """A model of another library, as small as can be: [rows, tokens] -> [rows, tokens, 11]."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.head = nn.Linear(8, 11)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.head(x + self.down(torch.relu(self.up(x))))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny().eval()
