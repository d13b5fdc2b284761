"""A client's model: a shell of its own for each message, with the weights of the client's state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from clients.client import _twin
from fedkd.models.zoo import MODELS, TEXT_MODELS, build


@pytest.mark.parametrize("name", sorted(MODELS))
def test_twins_share_nothing_that_one_may_change(name: str) -> None:
    """Two shells of one skeleton get other weights and a hook, as Opacus sets them."""
    text = name in TEXT_MODELS
    shape, dtype = ((1, 1, 16), torch.int16) if text else ((1, 28, 28), torch.float32)
    x = torch.linspace(0, 1, 3136).view(4, 1, 28, 28)
    if text:
        x = (torch.arange(64) % 10).view(4, 1, 1, 16)
    skeleton = build(name, shape, 10, torch.Generator().manual_seed(0), dtype).eval()
    untouched = copy.deepcopy(skeleton)
    twins = [_twin(skeleton), _twin(skeleton)]
    others = [
        build(name, shape, 10, torch.Generator().manual_seed(seed), dtype).eval() for seed in (1, 2)
    ]
    for twin, other in zip(twins, others, strict=True):
        twin.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    twins[0].register_forward_hook(lambda module, given, out: out + 1)
    twins[0].train()
    with torch.no_grad():
        twins[0].eval()
        assert torch.equal(twins[0](x), others[0](x) + 1)
        assert torch.equal(twins[1](x), others[1](x))
        assert torch.equal(skeleton(x), untouched(x))
    twins[0].train()
    assert not any(module.training for module in twins[1].modules())
    assert all(isinstance(module, nn.Module) for module in twins[1].modules())


def test_twins_of_a_module_that_keeps_its_weights_in_a_list_too() -> None:
    one, other = (_twin(nn.GRU(3, 4)) for _ in range(2))
    shell = nn.GRU(3, 4)
    twins = [_twin(shell), _twin(shell)]
    for twin, like in zip(twins, (one, other), strict=True):
        twin.load_state_dict(like.state_dict(), assign=True)
    x = torch.ones(2, 3)
    assert all(torch.equal(t(x)[0], o(x)[0]) for t, o in zip(twins, (one, other), strict=True))
