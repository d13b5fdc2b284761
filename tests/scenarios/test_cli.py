"""The command line as a user meets it: one clear line for a mistake, exit code 2, no traceback."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedkd import config
from scenarios import cli
from scenarios.simulate import resume, simulate
from small_runs import facts, small

HOME = Path(__file__).parents[2]
DIGITS = "scenarios/edgefd-digits.toml"


def fedkd(*arguments: str | Path, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scenarios.cli", *map(str, arguments)],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )


def idx_folder(folder: Path, labels: list[int], cut: int = 0) -> Path:
    """A folder of four small IDX files; the training images lose their last `cut` bytes."""
    folder.mkdir()
    images = np.zeros((len(labels), 4, 4), dtype=np.uint8)

    def idx(array: np.ndarray) -> bytes:
        head = bytes([0, 0, 8, array.ndim])
        sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
        return head + sizes + array.tobytes()

    for part in ("train", "t10k"):
        pictures = idx(images)
        if part == "train" and cut:
            pictures = pictures[:-cut]
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(idx(np.array(labels, dtype=np.uint8)))
        )
    return folder


def test_every_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HOME)
    truncated = idx_folder(tmp_path / "cut", [0, 1] * 30, cut=7)
    npz = tmp_path / "negative.npz"
    np.savez(npz, x=np.zeros((40, 4, 4), dtype=np.uint8), y=np.arange(40) - 3)
    mistakes: list[tuple[list[str], list[str]]] = [
        (["training.local.epoch=5"], ["training.local.epoch", "'epochs'"]),
        (["method.name=edgfd"], ["edgfd", "edgefd", "local-only"]),
        (["partition.name=dirichle"], ["dirichle", "dirichlet"]),
        (["method.gate.name=quantil"], ["quantil", "quantile"]),
        (["training.rounds=0"], ["training.rounds", "0", "greater than or equal to 1"]),
        (["data.name=idx", "data.path=/no/such/folder"], ["/no/such/folder", "fix"]),
        (["data.name=idx", f"data.path={truncated}"], ["train-images", "bytes"]),
        (["data.name=npz", f"data.path={npz}"], ["label", "-3"]),
        (["partition.clients=5000", "partition.name=iid"], ["clients"]),
        (["proxy.fraction=0"], ["proxy.fraction", "0"]),
        (["model.names=['resnet']"], ["resnet", "cnn"]),
        (["device=cuda:7"], ["cuda:7", "cpu"]),
        (["references=['fedavgg']"], ["fedavgg", "fedavg"]),
        (["nonsense"], ["KEY=VALUE", "nonsense"]),
    ]
    for sets, words in mistakes:
        flags = [part for text in sets for part in ("--set", text)]
        folder = tmp_path / "never"
        monkeypatch.setattr("sys.argv", ["fedkd", "run", DIGITS, *flags, "--out", str(folder)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert left.value.code == 2, (sets, lines)
        assert len(lines) == 1, (sets, lines)
        assert not folder.exists(), sets
        assert lines[0].startswith("fedkd: ")
        assert all(word in lines[0] for word in words), (sets, lines[0])
    missing = fedkd("run", "no-such.toml")
    assert missing.returncode == 2
    assert "no such scenario file" in missing.stderr


def test_run_report_and_json(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(config.dump(small(references=["local-only"])))
    folder = tmp_path / "run"
    done = fedkd("run", path, "--out", folder, "--set", "training.rounds=1")
    assert done.returncode == 0, done.stderr
    rounds = [line for line in done.stdout.splitlines() if "round 1/1" in line]
    assert len(rounds) == 2
    assert all("accuracy" in line and "left" in line and "up " in line for line in rounds)
    assert str(folder / "report.html") in done.stdout
    (folder / "report.html").unlink()
    assert fedkd("report", folder).returncode == 0
    assert (folder / "report.html").exists()

    again = fedkd("resume", folder, "--json")
    summary = json.loads(again.stdout)
    assert [line["row"] for line in summary["table"]] == ["edgefd", "local-only"]
    assert summary["table"][0]["accuracy"] == resume(folder).table()[0]["accuracy"]


def test_list_and_doctor() -> None:
    listed = json.loads(fedkd("list", "--json").stdout)
    assert "edgefd" in listed["method.name"]
    assert all(line for lines in listed.values() for line in lines.values())
    text = fedkd("list").stdout
    assert all(name in text for lines in listed.values() for name in lines)
    findings = json.loads(fedkd("doctor", "--json").stdout)
    assert {"python", "torch", "flwr", "gpu", "Fashion-MNIST"} <= {f["what"] for f in findings}


@pytest.mark.parametrize("delay_s", [0.0, pytest.param(0.7, marks=pytest.mark.slow)])
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, delay_s: float) -> None:
    what = small(training={"rounds": 60, "distill": {"epochs": 5}})
    path = tmp_path / "scenario.toml"
    path.write_text(config.dump(what))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "scenarios.cli", "run", str(path), "--out", str(folder)],
        cwd=HOME,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "edgefd" / "seed-1" / "events.jsonl").exists():
        time.sleep(0.01)
        assert process.poll() is None
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == f"stopped; go on with: fedkd resume {folder}"
    assert facts(resume(folder)) == facts(simulate(what))


def test_ctrl_c_is_130_even_if_it_strikes_inside_exec(tmp_path: Path) -> None:
    """Under `python -m`, CPython would there end by SIGINT, whatever exit code it is given."""
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys\n"
        "from scenarios import cli, simulate\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "def interrupted(*args, **kwargs):\n"
        "    exec('import os, signal; os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass')\n"
        "simulate.simulate = interrupted\n"
        f"sys.argv = ['fedkd', 'run', {DIGITS!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{HOME}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "program"], cwd=HOME, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 130
    assert "stopped; go on with: fedkd resume" in done.stderr
