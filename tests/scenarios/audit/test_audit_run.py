"""A real run is audited end to end: what must be found is, and what cannot be there is not."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedkd
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from fedkd.files import locked
from privacy.audit.exposure import NULL_BITS
from privacy.events import Gaussian
from privacy.ledger import Release
from scenarios.audit import findings
from scenarios.audit.findings import OBSERVERS, Finding
from scenarios.audit.parts import PARTS
from scenarios.audit.run import Audit, Step, audit
from scenarios.simulate import simulate
from small_runs import small

HOME = Path(__file__).parents[3]
HARD = {"epochs": 15, "batch_size": 16, "learning_rate": 0.003}


def scenario(repetitions: tuple[int, ...], **changes: Any) -> Scenario:
    """Four clients on digits that learn every record by heart: noise with made-up labels too."""
    table: dict[str, Any] = {
        "audit": True,
        "partition": {"name": "dirichlet", "clients": 4, "alpha": 2.0},
        "proxy": {"name": "public", "size": 60},
        "canaries": {
            "format": "noise",
            "assign": "coin",
            "each": 25,
            "repetitions": list(repetitions),
            "in_proxy": True,
        },
        "method": {"name": "no-filter"},
        "training": {"rounds": 2, "local": HARD, "distill": {"epochs": 2}},
    }
    return small(**{**table, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose canaries were in once, or not at all."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    simulate(scenario((0, 1)), folder=folder)
    return folder


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Its audit, in a copy."""
    return audit(copied(run, tmp_path_factory.mktemp("whole")))


def copied(run: Path, parent: Path) -> Path:
    return Path(shutil.copytree(run, parent / "run"))


def of(audited: Audit, **wanted: Any) -> list[Finding]:
    """The findings of the first cell that are as wanted."""
    return [
        one
        for one in audited.cells[0].findings
        if all(getattr(one, key) == value for key, value in wanted.items())
    ]


def value(audited: Audit, **wanted: Any) -> float:
    (one,) = of(audited, **wanted)
    assert one.value is not None
    return one.value


def cell(folder: Path) -> Path:
    return folder / "no-filter" / "seed-1"


def test_what_was_learnt_by_heart_is_found_and_the_less_the_further_away(whole: Audit) -> None:
    auc = {
        observer: value(
            whole,
            part="membership",
            observer=observer,
            attack="threshold",
            target="canaries in the proxy set",
            measure="auc",
        )
        for observer in OBSERVERS
    }
    assert auc["owner"] > 0.85
    assert auc["uploads"] > 0.95  # it answers before it hears the others
    assert 0.5 < auc["aggregate"] < auc["uploads"]
    for one in whole.cells[0].findings:
        assert one.observer in OBSERVERS
        assert one.part in PARTS
        assert one.value is None or math.isfinite(one.value)
        if one.most is not None and one.value is not None:
            assert one.value <= one.most + 1e-9
    assert not whole.contradictions


def test_references_are_those_that_an_observer_can_have(whole: Audit) -> None:
    aucs = of(whole, part="membership", target="canaries in the proxy set", measure="auc")
    attacks = {o: {one.attack for one in aucs if one.observer == o} for o in OBSERVERS}
    assert {"coop-lira", "coop-lira, rounds averaged"} <= attacks["uploads"]
    # One consensus has no peers; students of halves of it, some of which know a canary, stand in.
    assert {"lira-online, students", "rmia, students", "threshold"} <= attacks["aggregate"]
    assert not {"coop-lira", "rmia"} & attacks["aggregate"]
    assert {"rmia", "threshold"} <= attacks["peer"]  # one reference: the peer's own model
    assert "coop-lira" not in attacks["peer"]
    assert {"threshold", "quantile"} == attacks["student"]


def test_exposure_is_near_its_cap_where_canaries_are_known(whole: Audit) -> None:
    once = of(whole, part="exposure", target="canaries in the proxy set, once")
    by_observer = {one.observer: one for one in once if one.attack == "interpolated among controls"}
    assert set(by_observer) == set(OBSERVERS)
    uploads = by_observer["uploads"]
    assert uploads.value is not None
    assert uploads.most is not None
    assert uploads.value > uploads.most - 1
    controls = of(whole, part="exposure", target="controls", observer="owner")
    assert controls[0].value == pytest.approx(NULL_BITS, abs=0.25)  # ranks of 1 to n, to the bit
    curves = findings.read_curves(whole.cells[0].folder)
    assert {curve.attack for curve in curves if curve.kind == "histogram"} >= {"controls"}
    rocs = [curve for curve in curves if curve.kind == "roc"]
    assert all((curve.x[0], curve.x[-1], curve.y[-1]) == (0, 1, 1) for curve in rocs)
    assert all(len(curve.x) == len(curve.y) <= 200 for curve in rocs)


def test_where_there_is_nothing_nothing_is_found(whole: Audit) -> None:
    null = of(whole, part="null")
    assert {one.observer for one in null} == set(OBSERVERS)
    for one in null:
        assert one.low is not None
        assert one.high is not None
        assert one.null is not None
        # Intervals are of 95 %, and there are some: half as wide again holds nearly always.
        slack = (one.high - one.low) / 4
        assert one.low - slack <= one.null <= one.high + slack
    (untrained,) = (one for one in null if one.measure == "exposure")
    assert untrained.null == NULL_BITS


def test_the_other_parts_find_what_they_are_for(whole: Audit) -> None:
    kl = {
        observer: value(
            whole, part="label-distribution", observer=observer, attack="balanced", measure="kl"
        )
        for observer in ("uploads", "aggregate")
    }
    assert kl["uploads"] < kl["aggregate"]
    (copy,) = of(whole, part="theft", observer="uploads", measure="agreement")
    assert copy.value is not None
    assert copy.null is not None
    assert copy.value > copy.null + 0.2
    assert value(whole, part="canary-clients", measure="auc") > 0.7
    bounds = {one.observer: one for one in of(whole, part="epsilon")}
    assert bounds["uploads"].value is not None
    assert bounds["uploads"].value > 1
    assert bounds["uploads"].ceiling is None


def test_an_interrupted_audit_goes_on_where_it_was(run: Path, tmp_path: Path, whole: Audit) -> None:
    folder = copied(run, tmp_path)

    def stop(step: Step) -> None:
        if (step.part, step.seconds) == ("theft", None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(folder, listener=stop)
    with (cell(folder) / "audit" / "findings.jsonl").open("a") as file:
        file.write('{"part": "theft", "obs')  # as a crash tears it
    before = set(findings.done(cell(folder)))
    assert before == {"exposure", "membership", "label-distribution", "mask", "epsilon"}
    begun = []
    again = audit(
        folder, listener=lambda step: begun.append(step) if step.seconds is None else None
    )
    assert not before & {step.part for step in begun}
    assert again.cells[0].findings == whole.cells[0].findings
    assert findings.read_curves(cell(folder)) == findings.read_curves(whole.cells[0].folder)


def test_a_part_is_done_again_when_the_run_has_grown(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    log = cell(folder) / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    short = [line for line in lines if json.loads(line).get("round", 0) < 2]
    log.write_text("".join(short))
    audit(folder, parts=("mask",))
    assert findings.done(cell(folder))["mask"]["rounds"] == 1
    log.write_text("".join(lines))
    audit(folder, parts=("mask",))
    assert findings.done(cell(folder))["mask"]["rounds"] == 2


def forged(folder: Path, noise: float) -> None:
    """Every ledger says that all came from noise of so many times the sensitivity."""
    for path in folder.glob("*/*/clients/*/ledger.jsonl"):
        client = int(path.parent.name)
        event = Gaussian(unit="record", relation="add-remove", noise_multiplier=noise)
        lie = Release(
            client=client,
            round=1,
            what="soft labels",
            rows=1,
            seen_by="server",
            guarantee="proved",
            reason="forged",
            events=(event,),
        )
        path.write_bytes(lie.as_line())


def test_a_ledger_that_says_too_little_is_contradicted_loudly(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    forged(folder, noise=20.0)
    found = subprocess.run(
        [sys.executable, "-m", "scenarios.cli", "audit", folder, "--part", "epsilon", "--json"],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 1
    assert "CONTRADICTION in no-filter, seed 1" in found.stderr
    told = json.loads(found.stdout)
    assert any("'uploads'" in line for line in told["contradictions"])
    assert findings.read(cell(folder))  # written before it was said
    forged(folder, noise=0.05)  # epsilon of hundreds: nothing found contradicts that
    shutil.rmtree(cell(folder) / "audit")
    honest = audit(folder, parts=("epsilon",))
    assert not honest.contradictions
    (bound,) = of(honest, part="epsilon", observer="uploads")
    assert bound.ceiling is not None
    assert bound.ceiling > 100


def test_ceilings_stand_beside_what_was_found(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    forged(folder, noise=2.0)
    found = audit(folder, parts=("membership",))
    tprs = of(found, observer="uploads", attack="threshold", measure="tpr@0.01")
    assert all(one.ceiling is not None and 0.01 < one.ceiling < 0.1 for one in tprs)
    # The model itself never left, and no entry proves its training.
    assert all(one.ceiling is None for one in of(found, observer="owner"))


def test_under_secure_aggregation_nobody_sees_uploads(tmp_path: Path) -> None:
    what = scenario(
        (0, 16),
        privacy={"server": {"name": "secure-aggregation"}},
        training={"rounds": 1, "local": {"epochs": 6, "batch_size": 16}},
    )
    simulate(what, folder=tmp_path)
    found = audit(tmp_path)
    seen = {one.observer for one in found.cells[0].findings}
    assert seen == set(OBSERVERS) - {"uploads"}
    with pytest.raises(FedkdError, match="mask: the server saw sums alone"):
        audit(tmp_path, parts=("mask",))
    owner = value(
        found,
        part="membership",
        observer="owner",
        attack="coop-lira",
        measure="auc",
        target="canaries in the proxy set",
    )
    assert owner > 0.95  # repeated 16 times


def test_without_a_recording_models_are_still_audited(tmp_path: Path) -> None:
    what = scenario((0, 1), audit=False, training={"rounds": 1, "local": {"epochs": 1}})
    simulate(what, folder=tmp_path)
    with pytest.raises(FedkdError, match="audit = true"):
        audit(tmp_path, parts=("label-distribution",))
    found = fedkd.audit(tmp_path, parts=("exposure", "membership"))
    assert {one.observer for one in found.cells[0].findings} == {"owner", "student"}


def test_where_only_uploads_are_known_only_these_are_audited(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    shutil.rmtree(cell(folder) / "clients")
    found = audit(folder, parts=("exposure", "membership", "theft", "label-distribution"))
    assert {one.observer for one in found.cells[0].findings} == {"uploads", "aggregate", "peer"}
    assert not of(found, part="theft")


def test_shadow_federations_are_references_of_known_members(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    found = audit(folder, parts=("membership",), shadows=3)
    online = value(found, observer="uploads", attack="lira-online-fixed, shadows", measure="auc")
    # Of three coins all fall alike for a quarter of the canaries, which then go unscored.
    assert online > 0.7
    again: list[str] = []
    audit(folder, parts=("membership",), shadows=3, listener=lambda step: again.append(step.note))
    assert again[-1] == "done before"


Refused = Callable[[Path], object]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda folder: audit(folder, parts=("exposur",)), "did you mean 'exposure'"),
        (lambda folder: audit(folder / "nothing"), "not a run folder"),
        (lambda folder: audit(folder, parts=("spectrum",)), "of language models only"),
    ],
)
def test_a_mistake_is_said_before_anything_is_done(run: Path, ask: Refused, words: str) -> None:
    with pytest.raises(FedkdError, match=words):
        ask(run)


def test_two_audits_at_once_are_one_too_many(run: Path) -> None:
    with locked(run, "audit.lock"), pytest.raises(FedkdError, match="another process"):
        audit(run)


def test_images_are_sought_in_answers_and_in_weights(tmp_path: Path) -> None:
    what = small(
        audit=True,
        partition={"name": "strong", "clients": 10},
        proxy={"name": "public", "size": 150},
        method={"name": "no-filter"},
        training={"rounds": 1},
        references=("fedavg",),
    )
    simulate(what, folder=tmp_path)
    found = audit(tmp_path, parts=("inversion", "gradient-inversion"))
    by_row = {cell.row: cell.findings for cell in found.cells}
    assert {(one.part, one.measure) for one in by_row["no-filter"]} == {
        ("inversion", "success"),
        ("inversion", "ssim"),
    }
    assert [(one.part, one.measure) for one in by_row["fedavg"]] == [("gradient-inversion", "ssim")]
    for one in (*by_row["no-filter"], *by_row["fedavg"]):
        assert one.observer == "uploads"
        assert one.value is not None
        assert one.null is not None
        assert -1 <= one.value <= 1
        assert one.n > 0
