"""Two runs side by side, without training any."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vidtrain.errors import InputError
from vidtrain.running.again import steps_to_compare
from vidtrain.running.comparing import (
    Run,
    comparable,
    explanations,
    first_difference,
    read_run,
)

ROWS = [
    {"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.5, "lr": 0.1},
    {"kind": "weights", "step": 1, "epoch": 0.5, "sha256": "aa"},
    {"kind": "train", "step": 2, "epoch": 1.0, "loss": 1.0, "lr": 0.05},
    {"kind": "val", "step": 2, "epoch": 1.0, "loss": 1.2, "top1": 0.5},
    {"kind": "weights", "step": 2, "epoch": 1.0, "sha256": "bb"},
]
CONFIG = {"name": "a", "seed": 0, "optimizer": {"lr": 0.1}, "data": {"num_workers": 0}}
RECORD = {
    "vidtrain": "1", "code": {"vidtrain": {"sha256": "11"}}, "python": "3.12",
    "packages": {"torch": "2.14"}, "threads": 1, "world_size": 1, "environment": {},
    "data": {"train": {"videos": 2, "sha256": "d"}},
}  # fmt: skip


def rows(**changes: Any) -> list[dict[str, Any]]:
    """The rows with one figure of one row changed: row=(step, kind), and its new values."""
    step, kind = changes.pop("row")
    return [
        {**row, **changes} if (row["step"], row["kind"]) == (step, kind) else row for row in ROWS
    ]


def run(config: Any = CONFIG, record: Any = RECORD, rows: Any = ROWS) -> Run:
    return Run(Path("r"), config, record, rows)


def test_equal_rows_do_not_differ() -> None:
    assert first_difference(ROWS, [dict(row) for row in ROWS]) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (rows(row=(2, "train"), loss=1.25), "step 2: train loss 1.0 and 1.25, by 0.25 or 0.2 of"),
        (rows(row=(2, "val"), top1=None), "step 2: val top1 0.5 and None"),
        (rows(row=(1, "weights"), sha256="cc"), "step 1: weights aa and cc"),
        (rows(row=(1, "train"), extra=1), "step 1: train extra None and 1"),
        (ROWS[:3], "step 2: only one run has a row of kind val, the second has none"),
    ],
)
def test_the_first_difference_is_named(changed: list[dict[str, Any]], said: str) -> None:
    assert str(first_difference(ROWS, changed)).startswith(said)


def test_the_earliest_of_several_differences_counts() -> None:
    changed = [{**row, "loss": 9.0} if "loss" in row else row for row in ROWS]
    found = first_difference(ROWS, changed)
    assert found is not None
    assert (found.step, found.kind, found.values) == (1, "train", (1.5, 9.0))


def test_a_tolerance_lets_figures_differ_and_weights() -> None:
    changed = rows(row=(2, "train"), loss=1.0005)
    changed[1] = {**changed[1], "sha256": "cc"}
    assert first_difference(ROWS, changed, tolerance=1e-3) is None
    assert first_difference(ROWS, changed, tolerance=1e-4) is not None


def test_speeds_in_rows_of_older_versions_are_not_compared() -> None:
    older = [{**row, "clips_per_second": 3.0, "wait_share": 0.1} for row in ROWS]
    assert first_difference(ROWS, older) is None


@pytest.mark.parametrize(
    ("section", "config", "record", "line"),
    [
        ("config", {"optimizer": {"lr": 0.2}}, {}, "optimizer.lr: 0.1 -> 0.2"),
        (
            "data",
            {},
            {"data": {"train": {"videos": 3, "sha256": "d"}}},
            "data.train.videos: 2 -> 3",
        ),
        ("code", {}, {"vidtrain": "2"}, "vidtrain: '1' -> '2'"),
        ("versions", {}, {"packages": {"torch": "3"}}, "packages.torch: '2.14' -> '3'"),
        ("machine", {}, {"threads": 2}, "threads: 1 -> 2"),
    ],
)
def test_each_section_explains(
    section: str, config: dict[str, Any], record: dict[str, Any], line: str
) -> None:
    found = explanations(run(), run(CONFIG | config, RECORD | record))
    assert {name: lines for name, lines in found.items() if lines} == {section: [line]}
    assert list(found) == ["config", "data", "code", "versions", "machine"]


def test_rows_that_settings_put_at_other_steps_are_left_out_and_said() -> None:
    early = {"kind": "val", "step": 1, "epoch": 0.5, "loss": 1.3}
    more = [ROWS[0], early, *ROWS[1:], {"kind": "val", "step": 3, "epoch": 1.5, "loss": 1.1}]
    often = run(CONFIG | {"validate": {"every": "1 steps"}}, rows=more)
    (one, two), why = comparable(run(CONFIG | {"validate": {"every": "1 epoch"}}), often)
    assert why == "1 rows that only one run has are left out: validate.every differs"
    assert one == ROWS and early not in two
    assert str(first_difference(one, two)).startswith("step 3: only one run has a row of kind val")
    (one, two), why = comparable(run(), run(rows=more))  # nothing explains them
    assert why == "" and two == more
    assert str(first_difference(one, two)).startswith("step 1: only one run has a row of kind val")


def test_names_and_workers_explain_nothing() -> None:
    other = CONFIG | {"name": "b", "data": {"num_workers": 4}}
    assert not any(explanations(run(), run(other)).values())


def test_what_an_older_record_lacks_is_said_once() -> None:
    older = {key: value for key, value in RECORD.items() if key != "code"}
    assert explanations(run(), run(record=older))["code"] == ["only one run.json holds code"]


@pytest.mark.parametrize(("wanted", "step"), [(None, 10), (5, 10), (10, 10), (25, 20), (99, 30)])
def test_a_comparison_ends_at_a_digest(wanted: int | None, step: int) -> None:
    kinds = [{"kind": "train", "step": s} for s in range(1, 41)]
    digests = [{"kind": "weights", "step": s} for s in (10, 20, 30)]
    assert steps_to_compare(run(rows=kinds + digests), wanted) == step


def test_a_digest_without_a_row_of_the_training_before_it_is_passed_over() -> None:
    found = [{"kind": "weights", "step": 6}, {"kind": "train", "step": 10},
             {"kind": "weights", "step": 12}]  # fmt: skip
    assert [steps_to_compare(run(rows=found), wanted) for wanted in (None, 6, 99)] == [12] * 3
    assert steps_to_compare(run(rows=found[:1]), None) == 6


def test_without_digests_it_ends_at_a_row() -> None:
    kinds = [{"kind": "train", "step": s} for s in (5, 10)]
    assert steps_to_compare(run(rows=kinds), 7) == 5
    with pytest.raises(InputError, match="no row to compare"):
        steps_to_compare(run(rows=[]), None)


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        read_run(str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        read_run(str(tmp_path))
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match="holds no settings"):
        read_run(str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(InputError, match="has no kind or no step"):
        read_run(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_run(str(tmp_path)) == Run(tmp_path, CONFIG, RECORD, ROWS)
