# SPDX-License-Identifier: Apache-2.0
"""Stock models of transformers, small, with random weights: nothing is downloaded."""

import pytest
import torch

VOCAB = 89


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
