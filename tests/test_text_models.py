"""The zoo's language models: causal, as their oracles compute, alone, stacked and under Opacus."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedkd.cohort import Cohort
from fedkd.errors import FedkdError
from fedkd.models.text import Gru, Reader, Transformer
from fedkd.models.zoo import IMAGE_MODELS, MODELS, TEXT_MODELS, Classifier, Shape, build
from fedkd.rng import torch_stream

EVERY = pytest.mark.parametrize("name", TEXT_MODELS)
V, L = 11, 9


def model(name: str, seed: int = 1) -> Classifier:
    return build(name, (1, 1, L), V, torch_stream(seed, "test"), torch.int16)


def tokens(n: int, length: int = L, seed: int = 0) -> Tensor:
    return torch.randint(V, (n, 1, 1, length), generator=torch_stream(seed, "test"))


@EVERY
def test_logits_are_the_head_of_the_features(name: str) -> None:
    net, x = model(name), tokens(5)
    logits, features = net(x), net.features(x)
    assert logits.shape == (5, L, V)
    assert features.shape == (5, L, net.head.in_features)
    torch.testing.assert_close(logits, features @ net.head.weight.T + net.head.bias)
    assert net(x[:0]).shape == (0, L, V)


def test_the_number_of_weights_is_the_closed_form() -> None:
    block = 2 * (2 * 64) + 64 * 192 + 192 + 64 * 64 + 64 + 2 * 64 * 256 + 256 + 64
    expected = {
        "gru": 64 * V + 3 * 128 * (64 + 128 + 2) + 129 * V,
        "transformer": 64 * (V + L) + 2 * block + 2 * 64 + 65 * V,
    }
    assert {n: sum(p.numel() for p in model(n).parameters()) for n in TEXT_MODELS} == expected


@EVERY
def test_the_same_generator_gives_the_same_weights(name: str) -> None:
    one, same, other = (model(name, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    drawn = [key for key in one if "norm" not in key]
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


@EVERY
@settings(deadline=None, max_examples=20)
@given(at=st.integers(0, L - 1), seed=st.integers(0, 99))
def test_no_position_sees_a_later_one(name: str, at: int, seed: int) -> None:
    net, x = model(name), tokens(3, seed=seed)
    changed = x.clone()
    changed[..., at] = (x[..., at] + 1) % V
    before, after = net(x), net(changed)
    torch.testing.assert_close(before[:, :at], after[:, :at], rtol=0, atol=1e-6)
    assert ((before - after).abs().amax(dim=2) > 1e-6)[:, at:].all()
    torch.testing.assert_close(net(x[..., : at + 1]), before[:, : at + 1], rtol=0, atol=1e-5)


@EVERY
@given(cut=st.integers(1, L - 1))
@settings(deadline=None, max_examples=10)
def test_a_reader_goes_on_where_it_stopped(name: str, cut: int) -> None:
    net, x = model(name), tokens(3)
    assert isinstance(net.body, Reader)
    whole = x[:, 0, 0]
    first, memory = net.body.read(whole[:, :cut])
    second, _ = net.body.read(whole[:, cut:], memory)
    together = torch.cat([first, second], dim=1)
    torch.testing.assert_close(together, net.features(x), rtol=1e-5, atol=1e-5)


@EVERY
def test_samples_do_not_see_each_other(name: str) -> None:
    net, x = model(name).train(), tokens(6)
    assert not list(net.buffers())
    alone = torch.cat([net(sample[None]) for sample in x])
    torch.testing.assert_close(net(x), alone, rtol=1e-4, atol=1e-5)


def test_gru_is_torchs() -> None:
    ours = Gru(V, width=4, hidden=6)
    oracle = nn.GRU(4, 6, batch_first=True)
    with torch.no_grad():
        oracle.weight_ih_l0.copy_(ours.inputs.weight)
        oracle.bias_ih_l0.copy_(ours.inputs.bias)
        oracle.weight_hh_l0.copy_(ours.recurrent.weight)
        oracle.bias_hh_l0.copy_(ours.recurrent.bias)
    x = tokens(5)
    expected = oracle(ours.embedding(x[:, 0, 0]))[0]
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-6)


def test_transformer_is_torchs() -> None:
    """Against TransformerEncoder with pre-norm, GELU and a causal mask; any weights will do."""
    width, heads, n = 8, 2, 2
    ours = Transformer(V, longest=L, width=width, heads=heads, blocks=n)
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    with warnings.catch_warnings():  # it cannot use its nested tensors here
        warnings.simplefilter("ignore", UserWarning)
        oracle = nn.TransformerEncoder(layer, n, norm=nn.LayerNorm(width))
    pairs = {
        "attention_norm": "norm1",
        "dense_norm": "norm2",
        "dense_in": "linear1",
        "dense_out": "linear2",
        "attention_out": "self_attn.out_proj",
    }
    for block, theirs in zip(ours.blocks, oracle.layers, strict=True):
        for mine, other in pairs.items():
            theirs.get_submodule(other).load_state_dict(block.get_submodule(mine).state_dict())
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(block.queries_keys_values.weight)
            theirs.self_attn.in_proj_bias.copy_(block.queries_keys_values.bias)
    x = tokens(5)
    embedded = ours.embedding(x[:, 0, 0]) + ours.positions.weight[:L]
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    expected = oracle(embedded, mask=mask, is_causal=True)
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


@EVERY
def test_a_cohort_computes_what_each_computes_alone(name: str) -> None:
    models = [model(name, seed) for seed in range(3)]
    x = torch.stack([tokens(4, seed=seed) for seed in range(3)])
    alone = torch.stack([net(mine) for net, mine in zip(models, x, strict=True)])
    together = Cohort(models).logits(x)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    together.square().sum().backward()


@EVERY
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_finds_the_gradient_of_each_sample(name: str) -> None:
    net, x, y = model(name), tokens(4), tokens(4, seed=1)[:, 0, 0]
    assert ModuleValidator.validate(net, strict=True) == []

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)

    expected = {key: [] for key, _ in net.named_parameters()}
    for sample, wanted in zip(x, y, strict=True):
        net.zero_grad()
        loss(net(sample[None]), wanted[None]).sum().backward()
        for key, weight in net.named_parameters():
            assert weight.grad is not None
            expected[key].append(weight.grad.clone())
    net.zero_grad()
    private = GradSampleModule(net, loss_reduction="sum")
    loss(private(x), y).sum().backward()
    for key, weight in net.named_parameters():
        torch.testing.assert_close(
            weight.grad_sample, torch.stack(expected[key]), rtol=1e-3, atol=1e-6, msg=key
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_its_own_kind_of_data_only(name: str) -> None:
    kinds: list[tuple[torch.dtype, Shape]] = [
        (torch.uint8, (1, 8, 8)),
        (torch.float32, (1, 8, 8)),
        (torch.int16, (1, 1, L)),
    ]
    for dtype, shape in kinds:
        fits = (name in TEXT_MODELS) == (dtype == torch.int16)
        if fits:
            assert isinstance(build(name, shape, V, torch.Generator(), dtype), Classifier)
            continue
        kind, allowed = ("text", "gru") if dtype == torch.int16 else ("images", "mlp")
        with pytest.raises(FedkdError, match=f"cannot take {kind}; got '{name}'; .*{allowed}"):
            build(name, shape, V, torch.Generator(), dtype)
    assert IMAGE_MODELS | TEXT_MODELS == MODELS
