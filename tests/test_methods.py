"""Every row of the table of methods, as the documents tell it and as it plays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.special
import torch
from safetensors.numpy import load_file

from fedkd.config_sections import STAGES
from fedkd.exchange.gate import accept
from fedkd.exchange.methods import METHODS, Method
from fedkd.exchange.scores.kernels import KuLSIF
from fedkd.rng import torch_stream
from scenarios.simulate import simulate
from small_runs import small

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


# --- what the page says ---


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the first table under a heading of the page."""
    lines = PAGE.read_text(encoding="utf-8").split(f"\n{heading}\n")[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def path(method: Method) -> str:
    """The path as the page writes it: each stage with what is not its default."""

    def told(stage: str) -> str:
        row = getattr(method, stage)
        changed = row.model_dump(exclude_defaults=True)
        settings = ", ".join(f"{key}={value:g}" for key, value in changed.items())
        return f"{row.name}({settings})" if settings else row.name

    five = ("score", "gate", "release", "combine", "distill")
    way = " > ".join(map(told, five)) if method.exchange == "soft-labels" else method.exchange
    blank = Method(line="", source="")
    beside = [told(s) for s in STAGES if s not in five and getattr(method, s) != getattr(blank, s)]
    return " + ".join([way, *beside])


def test_the_page_tells_each_row_and_its_path() -> None:
    told = {name.strip("`"): where for name, where, *_ in table("## The table")}
    assert told == {name: path(method) for name, method in METHODS.items()}


def test_what_is_said_to_be_missing_is_not_there() -> None:
    missing = {name.lower() for names, *_ in table("### Not yet") for name in names.split(", ")}
    assert len(missing) > 10
    assert not missing & METHODS.keys()


def test_the_example_of_a_new_row_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8").split("\n### Adding a method\n")[1]
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 30
    try:
        exec(compile(code, "docs/methods.md", "exec"), {})
    finally:
        METHODS.pop("sharp-edges", None)
    accuracy, server, accepted = map(float, capsys.readouterr().out.split())
    assert min(accuracy, server) > 0.3
    assert 0 < accepted < 1


# --- how it plays ---


class Played(NamedTuple):
    rounds: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    first: dict[str, np.ndarray]
    """The consensus of the first round: before it, all rows have done the same."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """Two rounds of each row on one federation; a fraction of a second a row."""
    found = {}
    for name in METHODS:
        folder = tmp_path_factory.mktemp(name)
        (cell,) = simulate(small(method={"name": name}), folder=folder).cells
        (saved,) = folder.glob("*/seed-1/checkpoints/round-00001/arrays.safetensors")
        found[name] = Played(cell.of("round"), cell.of("refused"), load_file(saved))
    return found


@pytest.mark.parametrize("name", METHODS)
def test_each_row_plays(played: dict[str, Played], name: str) -> None:
    rounds = played[name].rounds
    assert not played[name].refused
    assert [line["n_clients"] for line in rounds] == [3, 3]
    if name != "cfd":  # the likeliest class of a model that has hardly learnt is one class
        assert rounds[0]["accuracy"] < rounds[1]["accuracy"] <= 1
    if METHODS[name].exchange == "soft-labels":
        assert rounds[1]["n_learnt"] > 0


def test_what_the_first_consensus_is(played: dict[str, Played]) -> None:
    mean = played["no-filter"].first
    truth = {
        "ds-fl": scipy.special.softmax(mean["values"] / 0.1, axis=1),
        "scarlet": mean["values"] ** 1.5 / (mean["values"] ** 1.5).sum(axis=1, keepdims=True),
    }
    for name, values in truth.items():
        np.testing.assert_array_equal(played[name].first["ids"], mean["ids"])
        np.testing.assert_allclose(played[name].first["values"], values, rtol=1e-4, atol=1e-7)


def test_fedmd_tells_raw_logits(played: dict[str, Played]) -> None:
    logits = played["fedmd"].first["values"]
    assert logits.min() < 0
    assert np.abs(logits.sum(axis=1) - 1).max() > 0.1
    # Three clients' means: near the mean of the soft labels, and not the same.
    near = scipy.special.softmax(logits, axis=1)
    gap = np.abs(near - played["no-filter"].first["values"]).max()
    assert 1e-4 < gap < 0.3


def test_the_filters_filter(played: dict[str, Played]) -> None:
    for name, method in METHODS.items():
        if method.exchange == "soft-labels":
            everything = method.score.name == "none" or method.gate.name == "soft"
            assert (played[name].rounds[0]["accepted"] == 1) == everything


# --- Selective-FD's settings, in our units ---


def test_selective_fd_answers_above_the_first_quartile_of_its_own_ratios() -> None:
    own, pool = np.random.default_rng(1).gamma(2, size=(2, 1000))
    mask, _ = accept(
        METHODS["selective-fd"].gate,
        torch.from_numpy(-own),
        torch.from_numpy(-pool),
        torch.zeros(len(pool), dtype=torch.bool),
    )
    np.testing.assert_array_equal(mask.numpy(), pool > np.quantile(own, 0.25))
    assert 0.7 < mask.double().mean() < 0.8


def test_selective_fd_measures_as_on_normalised_pixels() -> None:
    """Where its code has sigma 5, on (pixels - 0.1307) / 0.3081."""
    score = METHODS["selective-fd"].score
    assert isinstance(score, KuLSIF)
    pixels = torch.rand((60, 30), generator=torch_stream(1, "test"), dtype=torch.float64)
    found = []
    for scale, row in ((1.0, score), (0.3081, KuLSIF(bandwidth=5.0, auxiliary=250))):
        x = (pixels - 0.1307) / scale
        state = row.fit(x[:40], torch.zeros(40), torch_stream(1, "test", purpose="score"))
        found.append(row.score(state, x[40:]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)
    assert found[0].std() > 0.01 * found[0].mean().abs()
