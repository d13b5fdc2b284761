"""Reading findings: over seeds, the strongest attack, what contradicts a ledger, and the plots."""

from __future__ import annotations

import math
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import StepPatch

import made_up
from scenarios.audit.curves import exposures, rocs
from scenarios.audit.findings import OBSERVERS, Curve, Finding
from scenarios.audit.pictures import Point, leakage, utility
from scenarios.audit.reading import OUTSIDE, Leaks, Reading, contradictions, over_seeds
from scenarios.report.figures import png

ONE = Finding(
    part="membership",
    observer="uploads",
    attack="coop-lira",
    target="records",
    measure="auc",
    value=0.7,
    low=0.6,
    high=0.8,
    null=0.5,
    most=1.0,
    n=100,
)


def leaks(distance: float, seeds: tuple[int, ...] = (1, 2), knows: float | None = None) -> Leaks:
    """Of a made-up audit of texts."""
    audits = [made_up.audit(seed, distance, texts=True, knows=knows) for seed in seeds]
    return Leaks(
        seeds=seeds,
        readings=tuple(over_seeds([findings for findings, _ in audits])),
        curves=tuple(tuple(curves) for _, curves in audits),
        contradictions=(),
    )


def of(*findings: Finding) -> Leaks:
    return Leaks(
        seeds=(1,), readings=tuple(over_seeds([findings])), curves=((),), contradictions=()
    )


def read_one(*by_seed: Finding) -> Reading:
    (reading,) = over_seeds([[one] for one in by_seed])
    return reading


def test_one_seed_has_its_interval_and_several_that_of_their_mean() -> None:
    one = read_one(ONE)
    assert str(one) == "0.700 (0.600 to 0.800)"
    assert (one.half, one.interval) == (None, (0.6, 0.8))
    bare = read_one(replace(ONE, low=None, high=None))
    assert (str(bare), bare.interval) == ("0.700", None)
    both = read_one(ONE, replace(ONE, value=0.8, null=0.52))
    assert str(both) == "0.750 ± 0.635 (2 seeds, 95 %)"
    assert both.values == (0.7, 0.8)
    assert both.null == pytest.approx(0.51)
    assert both.finding.low is None
    # With one degree of freedom Student's t is Cauchy's: its quantile is a tangent.
    expected = math.tan(math.pi * 0.475) * math.sqrt(0.005 / 2)
    assert both.half == pytest.approx(expected)
    assert both.interval == pytest.approx((0.75 - expected, 0.75 + expected))


def test_what_could_not_be_measured_is_no_zero() -> None:
    lost = replace(ONE, value=None, low=None, high=None, note="no references")
    assert str(read_one(lost)) == "-"
    assert read_one(lost, ONE).mean == 0.7
    assert math.isnan(read_one(lost).leak)
    assert of(lost).asked() == []
    assert of(lost).strongest("membership", "auc") is None


def test_findings_about_other_things_stay_apart() -> None:
    others = [
        replace(ONE, **{key: "another"})  # type: ignore[arg-type]
        for key in ("part", "observer", "attack", "target", "measure")
    ]
    found = over_seeds([[ONE, *others, replace(ONE, adaptive=True)]])
    assert [len(reading.values) for reading in found] == [1] * 7


def test_the_ceiling_is_the_highest_of_any_seed() -> None:
    found = read_one(replace(ONE, ceiling=0.8), replace(ONE, ceiling=0.9), ONE)
    assert found.ceiling == 0.9


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.lists(st.sampled_from(list(OBSERVERS)), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_the_strongest_is_the_greatest_of_those_outside(
    values: list[float], observers: list[str], adaptive: list[bool]
) -> None:
    findings = [
        replace(ONE, value=value, observer=who, adaptive=knows, attack=str(at))
        for at, (value, who, knows) in enumerate(zip(values, observers, adaptive, strict=False))
    ]
    for knows in (None, True, False):
        best = of(*findings).strongest("membership", "auc", adaptive=knows)
        outside = [
            one.value
            for one in findings
            if one.observer != "owner" and knows in (None, one.adaptive)
        ]
        assert (best.mean if best else None) == max(outside, default=None)  # type: ignore[type-var]


def test_of_a_distance_the_least_is_the_strongest() -> None:
    far = replace(ONE, part="label-distribution", measure="tv", value=0.4, null=0.5, most=1.0)
    near = replace(far, value=0.1, attack="better")
    best = of(far, near).strongest("label-distribution", "tv")
    assert best is not None
    assert best.finding.attack == "better"
    assert best.leak == pytest.approx(0.8)
    assert read_one(replace(far, value=0.7)).leak == 0.0


def test_controls_and_checks_are_no_leak() -> None:
    control = replace(ONE, target="controls", value=0.99)
    check = replace(ONE, part="null", value=0.99)
    found = of(ONE, control, check)
    assert found.asked() == [("membership", "auc")]
    best = found.strongest("membership", "auc", OUTSIDE)
    assert best is not None
    assert best.mean == 0.7


def test_an_fpr_without_support_has_a_question_mark() -> None:
    note = "smallest FPR that 100 non-members support: 0.1"
    assert str(read_one(replace(ONE, measure="tpr@0.001", note=note))) == "0.700? (0.600 to 0.800)"


def test_a_bound_above_the_ledger_is_said() -> None:
    bound = replace(ONE, part="epsilon", measure="epsilon at least", value=9.0, ceiling=8.0)
    (text,) = contradictions(
        [ONE, replace(bound, ceiling=9.5), bound, replace(bound, ceiling=None)]
    )
    assert "epsilon at least 9.00" in text
    assert "allows 8.00" in text


BOTH = {"none": leaks(3.0), "swing": leaks(0.5, knows=1.0)}
POINTS = {"none": Point(0.9, 0.01, False), "swing": Point(0.8, None, True)}
DRAW = {
    "leakage": lambda: leakage(BOTH),
    "utility": lambda: utility(BOTH, POINTS, "accuracy"),
    "exposures": lambda: exposures(BOTH),
    "roc": lambda: rocs(BOTH),
    "roc of one": lambda: rocs({"swing": BOTH["swing"]}),
}


def drawn(name: str) -> Figure:
    figure = DRAW[name]()
    assert figure is not None
    return figure


@pytest.mark.parametrize("name", DRAW)
def test_the_same_findings_give_the_same_picture_and_it_shows_something(name: str) -> None:
    picture = png(drawn(name))
    assert picture == png(drawn(name))
    pixels = imread(BytesIO(picture))[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("draw", [leakage, exposures, rocs])
def test_without_findings_there_is_no_picture(draw: object) -> None:
    assert draw({}) is None  # type: ignore[operator]
    assert draw({"none": of(replace(ONE, part="theft"))}) is None  # type: ignore[operator]
    assert utility({}, POINTS, "accuracy") is None


def test_a_cell_of_the_heat_map_is_the_strongest_attack_of_its_observer() -> None:
    figure = drawn("leakage")
    names = [axes.get_title(loc="left") for axes in figure.axes]
    axes = figure.axes[names.index("Membership, AUC")]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    for y, found in enumerate(BOTH.values()):
        for x, who in enumerate(OBSERVERS):
            values = [
                reading.mean
                for reading in found.readings
                if (reading.finding.observer, reading.finding.measure) == (who, "auc")
            ]
            assert texts[x, y] == f"{max(values):.3f}"  # type: ignore[type-var]
    labels = figure.axes[names.index("Class shares, distance")]
    assert {text.get_text() for text in labels.texts if text.get_position()[0] == 0} == {"-"}


def test_utility_shows_the_worst_observer_who_is_not_the_owner() -> None:
    figure = drawn("utility")
    names = [axes.get_title(loc="left") for axes in figure.axes]
    axes = figure.axes[names.index("Membership, AUC")]
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))  # type: ignore[index,arg-type]
        for line in axes.lines
        if line.get_marker() in ("o", "s")
    }
    for name, point in POINTS.items():
        worst = BOTH[name].strongest("membership", "auc")
        owner = BOTH[name].strongest("membership", "auc", ["owner"])
        assert worst is not None
        assert owner is not None
        assert (point.utility, worst.mean) in points
        assert owner.mean > worst.mean  # type: ignore[operator]
    distance = figure.axes[names.index("Class shares, distance")]
    assert distance.yaxis_inverted()


def test_a_roc_is_the_mean_over_seeds_and_marks_what_is_supported() -> None:
    def line(*tprs: float) -> Curve:
        return Curve(
            part="membership",
            observer="uploads",
            attack="coop-lira",
            target="records",
            kind="roc",
            x=(0.0, 0.1, 1.0),
            y=(0.0, *tprs),
            n=100,
        )

    found = replace(of(ONE), curves=((line(0.4, 1.0),), (line(0.6, 1.0),)))
    figure = rocs({"none": found})
    assert figure is not None
    (axes,) = figure.axes
    curve = next(one for one in axes.lines if one.get_drawstyle() == "steps-post")
    assert np.asarray(curve.get_ydata())[1] == pytest.approx(0.5)
    marks = [one for one in axes.lines if list(map(float, one.get_xdata())) == [0.1, 0.1]]  # type: ignore[arg-type]
    assert len(marks) == 1
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_an_infinite_or_missing_exposure_does_not_spoil_the_histogram() -> None:
    curve = Curve(
        part="exposure",
        observer="uploads",
        attack="exact rank",
        target="canaries",
        kind="histogram",
        x=(1.0, math.nan, 3.0),
        n=3,
    )
    figure = exposures({"none": replace(of(ONE), curves=((curve,),))})
    assert figure is not None
    (axes,) = figure.axes
    (stairs,) = axes.patches
    assert isinstance(stairs, StepPatch)
    assert stairs.get_data().values.sum() == pytest.approx(1.0)
