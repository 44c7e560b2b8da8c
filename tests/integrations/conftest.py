# SPDX-License-Identifier: Apache-2.0
"""Models of other libraries, small and with random weights: nothing is downloaded."""

import pytest
import torch
from torch import nn

VOCAB = 89


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


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small gain nothing from more
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tokens():
    def make(rows, count, seed=0):
        return torch.randint(1, VOCAB, (rows, count), generator=torch.Generator().manual_seed(seed))

    return make
