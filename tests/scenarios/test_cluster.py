"""Asking for a grid: what is refused before anything starts, and how many workers fit."""

from __future__ import annotations

import itertools
import socket
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import config
from fedkd.config_sections import Grid
from fedkd.errors import FedkdError
from scenarios import cli, cli_options
from scenarios.grids.cluster import _fit
from small_runs import small

TENTHS = st.integers(1, 10)


@given(n_cpus=st.integers(0, 64), n_gpus=st.integers(0, 16), each=st.integers(1, 4), tenths=TENTHS)
def test_how_many_workers_fit_is_exact(n_cpus: int, n_gpus: int, each: int, tenths: int) -> None:
    """Against exact fractions, counted one by one."""
    share = Fraction(tenths, 10)
    fitting = itertools.takewhile(
        lambda n: n * each <= n_cpus and n * share <= n_gpus, itertools.count(1)
    )
    settings = Grid(client_cpus=each, client_gpus=tenths / 10)
    assert _fit({"CPU": float(n_cpus), "GPU": float(n_gpus)}, settings) == len(list(fitting))
    assert _fit({"CPU": float(n_cpus)}, Grid(client_cpus=each)) == n_cpus // each


def mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """What the command says to a mistake: one line, exit code 2."""
    monkeypatch.setattr("sys.argv", ["fedkd", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2, lines
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("ray", [["--ray"], ["--ray-address", "auto"]])
def test_two_grids_are_one_mistake(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ray: list[str],
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(config.dump(small()))
    folder = tmp_path / "run"
    said = mistake(
        monkeypatch, capsys, "run", str(path), "--out", str(folder), "--workers", "2", *ray
    )
    assert said.startswith("fedkd: two grids are asked for; got '--workers 2 and --ray")
    assert not folder.exists()


def test_a_port_where_nobody_listens_is_a_mistake_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    path = tmp_path / "scenario.toml"
    path.write_text(config.dump(small()))
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        said = mistake(
            monkeypatch,
            capsys,
            *("run", str(path), "--out", str(tmp_path / "run"), "--ray-address", address),
        )
    assert time.monotonic() - start < 60, "Ray itself takes over 100 s, and ends the process"
    assert said.startswith("fedkd: no Ray cluster answers there")
    assert address in said


@pytest.mark.parametrize("gpus", [1.5, 2.25])
def test_gpus_come_in_fractions_of_one_or_whole(gpus: float) -> None:
    with pytest.raises(FedkdError, match=rf"fraction of one GPU.*got {gpus}"):
        Grid(client_gpus=gpus)
    assert Grid(client_gpus=int(gpus)).client_gpus == int(gpus)


def test_the_grid_s_other_settings_stay_when_the_command_line_names_a_grid() -> None:
    scenario = small(grid={"name": "cohort", "block": 5, "client_gpus": 0.5})
    assert cli_options.placed(scenario, None, False, None) == scenario
    assert cli_options.placed(scenario, 3, False, None).grid == Grid(
        name="workers", workers=3, block=5, client_gpus=0.5
    )
    assert cli_options.placed(scenario, None, False, "h:1").grid == Grid(
        name="ray", address="h:1", block=5, client_gpus=0.5
    )
    assert cli_options.placed(scenario, None, True, None).grid.name == "ray"
