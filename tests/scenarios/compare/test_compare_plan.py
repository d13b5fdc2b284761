"""What a comparison asks for: from a file, from flags, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedkd import config
from fedkd.errors import FedkdError
from scenarios.compare.plan import ALWAYS, Asked, comparison, load, slug
from small_runs import small

HOME = Path(__file__).parents[3] / "scenarios"


def asked(**table: Any) -> Asked:
    return Asked.model_validate(table)


def test_every_method_and_reference_runs_on_every_split_with_every_seed() -> None:
    found = comparison(
        small(), asked(methods=["edgefd", "fedmd"], splits=["iid", "dirichlet:0.1"], seeds=[3, 1])
    )
    rows = ["edgefd", "fedmd", *ALWAYS]
    assert [(run.split, run.method) for run in found.runs] == [
        (split, row) for split in ("iid", "dirichlet:0.1") for row in rows
    ]
    assert list(found.methods.values()) == [False] * 2 + [True] * len(ALWAYS)
    assert all(run.scenario.seeds == (3, 1) for run in found.runs)
    assert all(run.scenario.references == () for run in found.runs)
    assert all(run.scenario.partition.clients == 3 for run in found.runs)  # type: ignore[union-attr]
    assert len({run.folder(Path("x")) for run in found.runs}) == len(found.runs)
    assert len({run.scenario.name for run in found.runs}) == len(found.runs)


def test_a_row_differs_from_the_scenario_in_what_it_is_called_for_alone() -> None:
    base = small()
    found = comparison(base, asked(methods=["scarlet"], splits=["shards:3"]))
    scenario = found.runs[0].scenario
    assert scenario.partition.model_dump() == {
        "name": "shards",
        "clients": 3,
        "shards_per_client": 3,
    }
    assert scenario.method == config.parse({"method": {"name": "scarlet"}}).method
    same = {"name", "references", "partition", "method"}
    assert scenario.model_dump(exclude=same) == base.model_dump(exclude=same)


def test_every_method_asks_about_as_much_of_the_pool_unless_it_says_otherwise() -> None:
    base = small(method={"name": "edgefd", "select": {"name": "random", "share": 0.25}})
    own = {"name": "scarlet", "set": ["method.select.name=all"]}
    found = comparison(base, asked(methods=["edgefd", "fedmd", own, "fd", "fedprox"]))
    drawn = {run.method: run.scenario.method.select.model_dump() for run in found.runs}
    whole = {"name": "all"}
    part = {"name": "random", "share": 0.25, "cache": 0}
    assert drawn == {
        "edgefd": part,
        "fedmd": part,
        "scarlet": whole,
        "fd": whole,
        "fedprox": whole,
        "local-only": whole,
        "no-filter": part,
        "fedavg": whole,
        "proxy-labels": whole,
    }


def test_without_a_section_the_scenario_s_own_method_stands_beside_the_references() -> None:
    base = small(method={"name": "edgefd", "gate": {"name": "open"}}, seeds=[4])
    found = comparison(base, asked())
    assert found.splits == ["dirichlet:0.5"]
    assert list(found.methods) == ["edgefd", *ALWAYS]
    assert found.seeds == (4,)
    assert found.runs[0].scenario.method == base.method
    assert found.runs[0].scenario.partition == base.partition
    by_name = {run.method: run.scenario for run in found.runs}
    assert by_name["no-filter"].method == base.row("no-filter").method


def test_the_same_method_can_stand_there_twice_under_labels() -> None:
    twice = [
        "edgefd",
        {
            "name": "edgefd",
            "label": "q 0.5",
            "set": ["method.gate.name=quantile", "method.gate.q=0.5"],
        },
        {"name": "no-filter"},
    ]
    found = comparison(small(), asked(methods=twice))
    assert list(found.methods) == [
        "edgefd",
        "q 0.5",
        "no-filter",
        "local-only",
        "fedavg",
        "proxy-labels",
    ]
    assert found.methods["no-filter"] is False  # it was asked for
    assert found.runs[1].scenario.method.gate.model_dump()["q"] == 0.5
    assert found.runs[1].folder(Path("x")) == Path("x/dirichlet-0.5/q-0.5")


def test_usual_references_that_cannot_be_are_left_out_with_the_reason() -> None:
    mixed = small(model={"names": ["mlp", "small-cnn"]})
    found = comparison(mixed, asked())
    assert "fedavg" not in found.methods
    assert "one model for all" in found.left_out["fedavg"]
    with pytest.raises(FedkdError, match="one model for all"):
        comparison(mixed, asked(references=["fedavg"]))
    hidden = small(privacy={"release": {"name": "top-1"}})
    assert "privacy.release" in comparison(hidden, asked()).left_out["fedavg"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"methods": ["edgfed"]}, "unknown method.*'edgfed'.*did you mean 'edgefd'"),
        ({"splits": ["stronk"]}, "unknown split.*'stronk'.*dirichlet:ALPHA.*did you mean 'strong'"),
        ({"splits": ["own"]}, "unknown split"),
        ({"splits": ["iid:3"]}, "takes no value"),
        ({"splits": ["dirichlet:many"]}, "dirichlet:many: bad value for 'partition.alpha'"),
        ({"splits": ["dirichlet:-1"]}, "partition.alpha"),
        ({"references": ["iid"]}, "unknown reference.*allowed: local-only, no-filter"),
        ({"methods": ["edgefd", "edgefd"]}, "method is asked for twice.*label"),
        ({"splits": ["dirichlet", "dirichlet"]}, "split is asked for twice"),
        (
            {"methods": [{"name": "edgefd", "label": "a b"}, {"name": "fedmd", "label": "a-b"}]},
            "twice",
        ),
        ({"seeds": [1, 2, 1]}, "seed is asked for twice"),
        ({"methods": [{"name": "edgefd", "label": "?!"}]}, "a label needs a letter"),
        ({"methods": [{"name": "edgefd", "set": ["method.gate.q=2"]}]}, "edgefd: unknown key"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(table: dict[str, Any], words: str) -> None:
    with pytest.raises(FedkdError, match=words):
        comparison(small(), asked(**table))


def test_files_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('[compare]\nname = "in the wrong section"\n')
    with pytest.raises(FedkdError, match=r"unknown key 'name' in \[compare\]"):
        load(path)
    path.write_text(config.dump(small()) + '[compare]\nseeds = [1, 2]\nmethods = ["fedmd"]\n')
    assert list(load(path).methods) == ["fedmd", *ALWAYS]
    flagged = load(path, ["training.rounds=7"], {"methods": ["ds-fl"], "seeds": ["5"]})
    assert (flagged.seeds, next(iter(flagged.methods))) == ((5,), "ds-fl")
    assert {run.scenario.training.rounds for run in flagged.runs} == {7}
    with pytest.raises(FedkdError, match=r"bad value for 'seeds\.0' in \[compare\]"):
        load(path, (), {"seeds": ["one"]})
    with pytest.raises(FedkdError, match="no such scenario file"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(FedkdError, match="nothing is named in splits"):
        load(path, (), {"splits": []})
    path.write_text("compare = 3\n")
    with pytest.raises(FedkdError, match="must be a section"):
        load(path)
    path.write_text("[compare\n")
    with pytest.raises(FedkdError, match="cannot read"):
        load(path)


@pytest.mark.parametrize("name", ["compare-digits", "compare-fashion"])
def test_the_files_that_come_along_can_be_read(name: str) -> None:
    found = load(HOME / f"{name}.toml")
    assert found.splits == ["strong", "weak", "iid", "dirichlet:0.1"]
    assert found.seeds == (1, 2, 3)
    assert not found.left_out
    assert "compare" in tomllib.loads((HOME / f"{name}.toml").read_text())


def test_labels_become_names_of_folders() -> None:
    assert slug("../etc/passwd") == "etc-passwd"
    assert slug("a  b: c") == "a-b-c"
