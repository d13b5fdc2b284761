"""The report as a reader gets it: a real run, opened in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from fedkd import payload, payload_answers
from fedkd.config_sections import Grid
from fedkd.data.federation import build
from scenarios.report import facts, page, times
from scenarios.report.columns import QUALITY
from scenarios.report.figures import BLUE, ORANGE, VOID
from scenarios.report.heatmaps import PALE_BLUE
from scenarios.report.plots import PLOTS
from scenarios.results import Cell, Result
from scenarios.simulate import simulate

DIGITS = Path(__file__).parents[2] / "scenarios" / "edgefd-digits.toml"
DRAW = {plot.name: plot.draw for plot in PLOTS}
EVIL = "five clients <script>document.title = 'owned'</script> & <b>two</b> classes"
OVERRIDES = (
    "training.rounds=2",
    "partition.name=weak",
    "partition.clients=5",
    "seeds=[1, 2]",
    "method.combine.name=vouched",
    'references=["local-only"]',
    f"description='''{EVIL}'''",
)


class Page(HTMLParser):
    """Images, table lines and text by id of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.lines: list[list[str]] = []
        self.text: dict[str, str] = {"": ""}
        self._open: list[str] = []
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag in ("img", "meta"):
            return
        self._open.append(dict(attrs).get("id") or "")
        if tag == "tr":
            self.lines.append([])
        elif tag in ("th", "td"):
            self.lines[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()
        self._in_cell = self._in_cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        for name in {"", *self._open}:
            self.text[name] = self.text.get(name, "") + data
        if self._in_cell:
            self.lines[-1][-1] += data


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Two rounds of five clients with two classes each; client 2 sends nonsense in round 1."""
    encode = payload_answers.encode_answer

    def encode_wrongly(answer: payload_answers.Answer, packing: None) -> payload.Bytes:
        wrong = answer.client == 2 and answer.round == 1
        return encode(answer._replace(values=answer.values * 2) if wrong else answer, packing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_answers, "encode_answer", encode_wrongly)
        return simulate(DIGITS, folder=tmp_path_factory.mktemp("run"), overrides=OVERRIDES)


@pytest.fixture(scope="module")
def path(result: Result) -> Path:
    assert result.folder is not None
    page.write(result, result.folder)
    return page.write(result, result.folder)  # again, over the first


@pytest.fixture(scope="module")
def html(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def written(result: Result, folder: Path) -> Page:
    return Page(page.write(result, folder).read_text(encoding="utf-8"))


def until(result: Result, round_: int) -> Result:
    """The result as it was after so many rounds of its last cell."""
    *others, last = result.cells
    events = [event for event in last.events if event.get("round", 0) <= round_]
    return replace(result, cells=(*others, replace(last, events=events)))


def png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_browser_decodes_every_plot_and_runs_no_script(
    path: Path, html: str, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    # Ahead of the page's own Content-Security-Policy, which allows no script.
    look = """<head><script>addEventListener("load", () => { for (const image of document.images)
        image.dataset.size = image.naturalWidth + "x" + image.naturalHeight })</script>"""
    probe = tmp_path / "probe.html"
    probe.write_text(html.replace("<head>", look, 1), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    flags += "--disable-background-networking --disable-component-update --dump-dom"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dom = subprocess.run(
        [chromium, *flags.split(), profile, probe.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    sizes = {
        name: "{}x{}".format(*png_size((path.parent / "plots" / f"{name}.png").read_bytes()))
        for name in DRAW
    }
    seen = Page(dom)
    assert [image["data-size"] for image in seen.images] == list(sizes.values())
    assert seen.text["comparison"] == Page(html).text["comparison"]
    assert "<title>edgefd-digits · fedkd</title>" in dom


def test_the_page_refers_to_nothing_outside(html: str) -> None:
    frame = re.sub(r"base64,[\w+/=]+", "", html)
    assert not re.search(r"//\w|url\(|@import|<script|<link|<iframe|<object|srcset", frame)
    sources = [str(image["src"]) for image in Page(html).images]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "&lt;script&gt;" in html
    assert EVIL in Page(html).text[""]


def test_plots_lie_beside_the_page_and_nothing_else_does(path: Path) -> None:
    files = {file.name for file in path.parent.rglob("plots/*")}
    assert files == {f"{name}.png" for name in DRAW}
    assert not [file.name for file in path.parent.iterdir() if file.name.startswith(".")]
    for name in files:
        pixels = imread(path.parent / "plots" / name)
        assert pixels.shape[1] >= 1000
        assert pixels[..., :3].std() > 0.05


def test_the_table_is_the_result(result: Result, html: str) -> None:
    def number(text: str) -> float:
        value, unit = text.split()[:2]
        return float(value) * {"%": 0.01, "B": 1, "kB": 1e3, "MB": 1e6, "s": 1}[unit]

    heading, *lines = Page(html).lines[:3]
    keys = ["accuracy", "accuracy_worst", "own_accuracy", "best_accuracy", "accepted"]
    keys += ["precision", "recall", "consensus_accuracy", "bytes", "seconds"]
    assert len(heading) == 1 + len(keys)
    for shown, line in zip(lines, result.table(), strict=True):
        assert shown[0] == f"{line['row']} 2 seeds"
        assert shown[1].endswith(f" ± {100 * line['accuracy_sd']:.1f}")
        for text, key in zip(shown[1:], keys, strict=True):
            if line[key] is None:
                assert text == "-"
            else:
                rounding = {"bytes": 50_000, "seconds": 0.5}.get(key, 0.0005)
                assert number(text) == pytest.approx(line[key], rel=1e-9, abs=rounding)
    assert [line["precision"] is None for line in result.table()] == [False, True]


def test_calibration_and_fairness_are_the_result_s(result: Result, html: str) -> None:
    heading, *lines = Page(html).lines[3:6]
    assert heading[1:] == [column.heading for column in QUALITY]
    for shown, line in zip(lines, result.table(), strict=True):
        assert shown[1] == f"± {100 * line['clients_sd']:.1f}"
        least = min(line["class_recall"])
        assert shown[3] == f"{100 * least:.1f} %, class {line['class_recall'].index(least)}"
        low, high = (100 * line[key] for key in ("ece_low", "ece_high"))
        assert shown[4] == f"{100 * line['ece']:.1f} ({low:.1f} to {high:.1f})"
        assert float(shown[5]) == pytest.approx(line["brier"], abs=5e-4)
    assert "Brier" not in Page(written_without(result)).text[""]


def written_without(result: Result) -> str:
    """The page of an older run, whose rounds say nothing of quality."""
    keys = ("brier", "ece", "ece_low", "ece_high", "class_recall", "accuracy_worst_tenth")
    cells = tuple(
        replace(cell, events=[{k: v for k, v in e.items() if k not in keys} for e in cell.events])
        for cell in result.cells
    )
    with TemporaryDirectory() as folder:
        return page.write(replace(result, cells=cells), Path(folder)).read_text()


def test_what_left_the_clients_is_what_they_recorded(result: Result, html: str) -> None:
    assert result.folder is not None
    scenario, seen = result.scenario, Page(html)
    given = build(scenario.data, scenario.partition, scenario.proxy, scenario.validation, 1)
    assert int(seen.text["contributed"]) == sum(map(len, given.contributed)) > 200
    rows = 0
    for ledger in result.folder.glob("edgefd/seed-1/clients/*/ledger.jsonl"):
        for entry in map(json.loads, ledger.read_text().splitlines()):
            refused = entry["client"] == 2 and entry["round"] == 1
            rows += entry["rows"] * (entry["what"] == "soft labels" and not refused)
    assert int(seen.text["rows"].replace(",", "")) == rows > 0
    by_client = {line[0]: line[1:] for line in seen.lines[7:]}
    assert by_client["2"][2::2] == ["2", "1"]
    assert [line[4] for line in by_client.values()] == ["0", "0", "1", "0", "0"]
    assert [int(line[1]) for line in by_client.values()] == [len(x) for x in given.contributed]
    assert "There is no differential privacy guarantee" in seen.text["left"]
    assert "1 more reply that the server refused" in seen.text["left"]


def test_notes_tell_refusals_and_rounds_without_consensus(result: Result, tmp_path: Path) -> None:
    note = "no client accepted any proxy sample: no consensus"
    first, *others = result.cells
    events = [{**event, "note": note} if "kept" in event else event for event in first.events]
    notes = facts.notes(replace(result, cells=(replace(first, events=events), *others)))
    assert notes[0] == f"edgefd, seed 1, round 1 to 2: {note}"
    for seed, text in enumerate(notes[1:], start=1):
        assert text.startswith(
            f"edgefd, seed {seed}: 1 reply to “train” refused (client 2; round 1)"
        )
        assert "a row is not a distribution" in text
    assert "a row is not a distribution" in written(result, tmp_path).text["notes"]
    many = [
        {**refusal, "reason": f"reason {i}"} for i in range(50) for refusal in first.of("refused")
    ]
    told = facts.notes(replace(result, cells=(replace(first, events=many),)))
    assert len(told) == facts.MOST_NOTES + 1
    assert told[-1] == "and 20 more; see events.jsonl"


def test_a_run_that_was_interrupted_says_so(result: Result, html: str, tmp_path: Path) -> None:
    assert 'id="unfinished"' not in html
    told = written(until(result, 1), tmp_path / "one").text["unfinished"]
    assert "local-only, seed 2: 1 of 2 rounds done" in told
    assert "edgefd" not in told
    none = written(replace(result, cells=()), tmp_path / "none")
    assert "edgefd, seed 1 to 2: 0 of 2 rounds done" in none.text["unfinished"]
    assert none.images == []


def test_curves_are_means_over_seeds(result: Result) -> None:
    axes = axes_of(DRAW["curves"](result))
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}
    own = np.array([[e["accuracy"] for e in cell.of("round")] for cell in result.rows()["edgefd"]])
    (mean,) = [line for label, line in lines.items() if re.fullmatch(r"edgefd  [\d.]+ %", label)]
    assert mean == pytest.approx(own.mean(axis=0))
    assert [len(line) for line in lines.values()] == [2, 2, 2]
    short = axes_of(DRAW["curves"](until(result, 1)))
    assert [len(np.asarray(line.get_ydata())) for line in short.lines] == [2, 2, 1]


def test_bars_add_up_to_the_table(result: Result) -> None:
    table = result.table()
    for name, key, parts, marks in (("bytes", "bytes", 3, 0), ("seconds", "seconds", 6, 1)):
        bars = [bar.get_bbox() for bar in bars_of(DRAW[name](result))]
        rows = np.reshape([bar.width for bar in bars], (len(table), parts + marks))
        sums = rows[:, :parts].sum(axis=1)
        assert sums == pytest.approx([line[key] for line in table], abs=1e-6, rel=1e-6)
    ends = [(bar.x0 + bar.x1) / 2 for bar in bars[6::7]]  # the marks: the clock
    assert ends == pytest.approx([line["seconds"] for line in table])


def of_times(result: Result, grid: str, *, wall: float, **phases: float) -> Result:
    """The result as one cell of two clients and one round; the row `silent` measured no phase."""
    client = {"event": "client", **{f"{name}_s": seconds for name, seconds in phases.items()}}
    last = {"event": "round", "round": 1, "seconds": wall, "accuracy": 0.5}
    cell = Cell(row="edgefd", seed=1, events=[client, client, last])
    scenario = result.scenario.on(Grid.model_validate({"name": grid}))
    silent = Cell(row="silent", seed=1, events=[last])
    return replace(result, scenario=scenario, cells=(cell, silent))


def test_time_by_phase_says_what_is_known_and_no_more(result: Result) -> None:
    alone = of_times(result, "cohort", wall=10, train=3, distill=1)
    assert times.in_words(alone) == [
        "edgefd: 10 s by the clock: train 6.0 s (60.0 %), distill 2.0 s (20.0 %), "
        "server and messages 2.0 s (20.0 %)"
    ]
    # Side by side: more work than time, and no rest even if there is less work than time.
    beside = of_times(result, "workers", wall=4, train=3, distill=1)
    assert times.in_words(beside) == [
        "edgefd: 8.0 s of clients' work in 4.0 s by the clock, 2.0 at a time: "
        "train 6.0 s (75.0 %), distill 2.0 s (25.0 %)"
    ]
    idle = times.times(of_times(result, "workers", wall=100, train=3))["edgefd"]
    assert (idle.work, idle.rest, idle.longest) == (6, 0, 100)
    widths = [bar.get_bbox().width for bar in bars_of(DRAW["seconds"](beside))]
    assert widths[:6] == pytest.approx([6, 0, 0, 2, 0, 0])
    assert DRAW["seconds"](of_times(result, "inline", wall=1)) is None


def test_the_page_tells_the_time_of_every_row(result: Result, html: str) -> None:
    told = Page(html).text["time"]
    assert all(line in told for line in times.in_words(result))
    assert [line.split(":")[0] for line in times.in_words(result)] == ["edgefd", "local-only"]


def test_the_filter_map_shows_right_wrong_and_unknown(result: Result) -> None:
    events: list[dict[str, Any]] = [
        {"event": "hello", "client": 0, "class_counts": [9, 9, 0, 0, 0]},
        {"event": "pool", "class_counts": [4, 4, 4, 4, 0]},
        {"event": "client", "client": 0, "accepted_by_class": [0, 4, 0, 0, 0]},
        {"event": "client", "client": 0, "accepted_by_class": [4, 0, 4, 0, 0]},
    ]
    cell = Cell(row="edgefd", seed=1, events=events)
    axes = axes_of(DRAW["filter"](replace(result, cells=(cell,))))
    wanted = [to_rgb(colour) for colour in (BLUE, PALE_BLUE, ORANGE, "white", VOID)]
    assert np.asarray(axes.images[0].get_array())[0] == pytest.approx(np.array(wanted))
    assert [text.get_text() for text in axes.texts] == ["100", "100"]
    assert len(axes.patches) == 2  # the outlines of its own classes


def test_nothing_to_show_gives_no_plot(tmp_path: Path) -> None:
    alone = simulate(DIGITS, overrides=("method.name=local-only", "references=[]"), rounds=1)
    assert {image["alt"] for image in written(alone, tmp_path / "alone").images} == {
        plot.alt for plot in PLOTS if plot.name in ("curves", "partition", "seconds")
    }
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8), np.arange(40) % 4
    np.savez(tmp_path / "foreign.npz", x=x, y=y, x_test=x[:4], y_test=y[:4])
    source = f'proxy.source={{name = "npz", path = "{tmp_path / "foreign.npz"}"}}'
    foreign = simulate(DIGITS, overrides=("proxy.name=foreign", source, "references=[]"), rounds=1)
    assert DRAW["filter"](foreign) is None
    seen = written(foreign, tmp_path / "foreign")
    assert len(seen.images) == 4
    assert seen.text["contributed"] == "0"
    assert seen.lines[1][5] != "-"
    assert seen.lines[1][6:9] == ["-"] * 3


@pytest.mark.parametrize(("n_clients", "n_classes"), [(1, 2), (10, 10), (100, 10), (1000, 100)])
def test_labels_do_not_overlap(result: Result, n_clients: int, n_classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 90_000, (n_clients, n_classes)).tolist()
    events: list[dict[str, Any]] = [
        *({"event": "hello", "client": i, "class_counts": counts[i]} for i in range(n_clients)),
        {"event": "pool", "class_counts": [90_000] * n_classes, "bytes_up": 10**9},
        *(
            {"event": "client", "client": i, "accepted_by_class": counts[i], "train_s": 50.0}
            for i in range(n_clients)
        ),
    ]
    events += [
        {**{"event": "round", "round": r, "accuracy": 0.5, "accuracy_worst": 0.1}, "seconds": 700.0}
        | {"bytes_up": 999_900, "bytes_down": 10**8, "bytes_pool": 1}
        | {"trusted": list(range(n_clients)), "trust": [i / n_clients for i in range(n_clients)]}
        for r in range(1, n_clients + 1)
    ]
    names = ("edgefd", "local-only", "no-filter", "iid", "fedavg", "proxy-labels", "centralised")
    cells = tuple(Cell(row=name, seed=1, events=events) for name in names)
    for name, draw in DRAW.items():
        plot = draw(replace(result, cells=cells))
        assert plot is not None
        plot.draw_without_rendering()
        check_labels(name, plot)


def bars_of(plot: Figure | None) -> list[Rectangle]:
    return [patch for patch in axes_of(plot).patches if isinstance(patch, Rectangle)]


def axes_of(plot: Figure | None) -> Axes:
    assert plot is not None
    return plot.axes[0]


def check_labels(name: str, plot: Figure) -> None:
    """Tick labels leave each other room, and every text lies within the figure."""
    for axes in plot.axes:
        ticks = [
            [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text()]
            for axis in (axes.xaxis, axes.yaxis)
        ]
        for side, boxes in zip("xy", ticks, strict=True):
            spans = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in boxes)
            assert all(end < start for (_, end), (start, _) in pairwise(spans)), (name, side)
        for text in axes.texts:
            box = text.get_window_extent()
            assert plot.bbox.x0 <= box.x0 < box.x1 <= plot.bbox.x1, (name, text)
