"""The cohort grid against the inline grid: equal up to rounding, itself equal to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedkd import config
from fedkd.config_sections import Grid
from fedkd.errors import FedkdError
from scenarios.simulate import resume, simulate
from server.events import Event
from small_runs import facts, small

CLOSE = {"accuracy", "own_accuracy", "validation_accuracy", "consensus_accuracy"}
LOSSES = {"train_loss", "distill_loss"}
CONFIDENCES = {"brier", "ece", "ece_low", "ece_high"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": {"name": "fedavg"}},
        {"method": {"name": "edgefd", "gate": {"name": "own"}}, "model": {"names": ["mlp", "cnn"]}},
        {"training": {"rounds": 2, "participation": 0.6}},
    ],
    ids=["edgefd", "fedavg", "mixed models", "some take part"],
)
def test_a_cohort_equals_inline_up_to_rounding(changes: dict[str, Any]) -> None:
    """Accuracies within one test sample in 50, losses within 1 %, what is made of confidences
    within 1e-5, everything else the same."""
    clients = {"partition": {"name": "dirichlet", "clients": 5, "alpha": 0.5}}
    alone = facts(simulate(small(**clients, **changes)))
    together = facts(simulate(small(**clients, **changes, grid={"name": "cohort", "block": 4})))
    assert len(alone) == len(together)
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key in CLOSE or key.startswith("accuracy"):
                assert other[key] == pytest.approx(value, abs=0.02), key
            elif key in LOSSES:
                assert other[key] == pytest.approx(value, rel=0.01), key
            elif key in CONFIDENCES:
                assert other[key] == pytest.approx(value, abs=1e-5), key
            else:
                assert other[key] == value, key


def test_a_calibrated_block_is_kept_with_the_run(tmp_path: Path) -> None:
    """So a resumed run repeats the same arithmetic, whatever a new calibration would find."""

    class Stop(Exception):
        pass

    def stop(row: str, seed: int, event: Event) -> None:
        if event["event"] == "round":
            raise Stop

    models = {"names": ["mlp", "cnn"]}
    calibrating = small(model=models, grid={"name": "cohort", "block": [0, 2]})
    with pytest.raises(Stop):
        simulate(calibrating, folder=tmp_path, listener=stop)
    result = resume(tmp_path)
    block = result.scenario.grid.block
    assert block[0] >= 1
    assert block[1] == 2
    again = small(model=models, grid={"name": "cohort", "block": block})
    assert facts(result) == facts(simulate(again))


def test_one_failing_client_does_not_take_its_block_along() -> None:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from scenarios.grids.inline import InlineGrid
    from scenarios.grids.nodes import FIRST_NODE_ID
    from server.calls import ask

    app = ClientApp()

    @app.train()
    def alone(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            raise RuntimeError("out of memory")
        return Message(RecordDict(), reply_to=message)

    def together(deliveries: list[tuple[Message, Context]]) -> list[Message]:
        return [alone(message, context) for message, context in deliveries]

    app.together = {"train": together}  # type: ignore[attr-defined]
    nodes = {i: FIRST_NODE_ID + i for i in range(6)}
    grid = InlineGrid(app, 6, block=4)
    replies = list(ask(grid, nodes, RecordDict(), "train", timeout_s=5))
    assert [reply.failure is None for reply in replies] == [True, True, False, True, True, True]
    assert "out of memory" in str(replies[2].failure)


def test_a_block_is_one_number_or_one_for_each_model() -> None:
    models = {"names": ["mlp", "cnn"]}
    for block, expected in ((3, (3, 3)), ([3], (3, 3)), ([8, 1], (8, 1))):
        scenario = small(model=models, grid={"name": "cohort", "block": block})
        assert scenario.blocks == dict(zip(models["names"], expected, strict=True))
        assert scenario.on(Grid()).blocks == {"mlp": 1, "cnn": 1}
        assert config.from_json(scenario.model_dump_json()) == scenario
    with pytest.raises(FedkdError, match=r"1 number, or 2"):
        small(model=models, grid={"name": "cohort", "block": [1, 2, 3]})
    with pytest.raises(FedkdError, match=r"grid\.block"):
        small(grid={"name": "cohort", "block": "many"})
