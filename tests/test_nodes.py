"""Two nodes of two processes, and what happens to nodes: faults while training, and what is lost.

Two network namespaces of one machine, see `namespaces`; docs/nodes.md has the figures.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import namespaces
import numpy as np
import pytest
from conftest import REPO, TESTS, TINY, loaded, same_state, torchrun, write_video
from namespaces import Node, launch, until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(2400)]
STEPS = 120
AGAIN = "going on from step "
# Batch norm would see other clips with other numbers of processes.
SETTINGS = (
    *TINY, "model.build._target_=my_models.tiny_without_batch_norm", "model.build.width=64",
    "model.build.dropout=0.0", "data=folder", "data.num_workers=0", "num_threads=1",
    "train.batch_size=8", "train.micro_batch=2", "train.epochs=150", "train.log_every_steps=1",
    "optimizer.lr=0.001", "validate.every='150 epochs'", "save.every='5 steps'",
    "eval.batch_size=4",
)  # fmt: skip
Pair = tuple[Node, Node]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Pair]:
    """Node a, where the rendezvous is, and node b."""
    reason = namespaces.why_not()
    if reason is not None:
        pytest.skip(reason)
    with namespaces.two_nodes(tmp_path) as pair:
        yield pair


@pytest.fixture(scope="module")
def whole(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an unbroken training of four processes on one machine."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:  # the fixture of all tests is made later
        patch.setenv("VIDTRAIN_ALLOW_TARGETS", "my_models")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(REPO)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        settings = command(class_folders, f"train.max_steps={STEPS}")
        done = torchrun(4, *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs/nodes"


def command(data: Path, *more: str) -> list[str]:
    return ["train", *SETTINGS, f"data.root={data}", "name=nodes", *more]


def rows(run: Path) -> list[dict]:
    """The rows of a training under way, one a step."""
    path, found = run / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):  # not one that is being written
            found.append(json.loads(line))
    return [row for row in found if row["kind"] == "train"]


def step(run: Path) -> int:
    return rows(run)[-1]["step"] if rows(run) else 0


def processes(run: Path) -> int:
    """How many processes wrote the newest checkpoint."""
    last = run / "checkpoints/last/manifest.json"
    try:
        return json.loads(last.read_text())["processes"]
    except FileNotFoundError:  # about to be replaced
        return 0


def under_way(nodes: Pair, settings: list[str], **options: str | int) -> Path:
    """Starts a training on both nodes, and returns its run folder 43 steps later."""
    for node in nodes:
        launch(nodes, node, settings, **options)  # type: ignore[arg-type]
    run = nodes[0].folder / "runs/nodes"
    until(lambda: step(run) >= 43 or ended(nodes), "43 steps")
    assert not ended(nodes), said(nodes)
    return run


def ended(nodes: Pair) -> bool:
    return any(node.process is not None and node.process.poll() is not None for node in nodes)


def said(nodes: Pair) -> str:
    return "".join(f"\n--- {node.name}\n{node.said}" for node in nodes)


def gone_on(nodes: Pair, run: Path, fault: Callable[[], object]) -> None:
    """Does something bad, waits until training is past where it was, and says what that cost."""
    began, starts = time.monotonic(), len(nodes[0].said.split(AGAIN))
    fault()
    until(lambda: len(nodes[0].said.split(AGAIN)) > starts or ended(nodes), "a new start")
    before, after = nodes[0].said.split(AGAIN)[-2:]
    reached, kept = int(before.split("\nstep ")[-1].split("/")[0]), int(after.split()[0])
    until(lambda: step(run) > reached or ended(nodes), "the step after the fault")
    seconds = time.monotonic() - began
    print(f"fault after step {reached}, taken up at {kept}; past it after {seconds:.0f} s")
    # A checkpoint may have been under way when rank 0 ended; the one before is whole.
    assert 0 <= reached - kept < 10, "nothing is lost beyond the last checkpoint"


def finished(nodes: Pair, run: Path, steps: int = STEPS) -> None:
    """Asserts that all ended well, and that each step was taken up once, none left out."""
    assert [node.wait(900) for node in nodes] == [0, 0], said(nodes)
    assert [row["step"] for row in rows(run)] == list(range(1, steps + 1))
    assert f"done: step {steps} of" in nodes[0].said


def same_run(whole: Path, run: Path) -> None:
    """Asserts that a run has the bits of the unbroken one, in all its steps."""
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    same_state(whole, run)


def test_two_nodes_train_as_one_machine_does(nodes: Pair, whole: Path, class_folders: Path) -> None:
    run = under_way(nodes, command(class_folders, f"train.max_steps={STEPS}"))
    finished(nodes, run)
    same_run(whole, run)
    assert nodes[1].said.count("step ") == 0, "rank 0 alone speaks"


def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(
    nodes: Pair, whole: Path, class_folders: Path
) -> None:
    run = under_way(nodes, command(class_folders, f"train.max_steps={STEPS}"))
    gone_on(nodes, run, nodes[1].workers()[1].kill)
    finished(nodes, run)
    same_run(whole, run)
    assert "exitcode: -9" in nodes[1].said
    assert "another process is gone" in nodes[0].said


def test_a_lost_node_is_done_without_until_it_is_back(
    nodes: Pair, whole: Path, class_folders: Path
) -> None:
    a, b = nodes
    settings = command(class_folders)
    run = under_way(nodes, settings, number="1:2")
    b.die()
    print(f"alone after {until(lambda: processes(run) == 2, 'a checkpoint of one node'):.0f} s")
    launch(nodes, b, settings, number="1:2")
    back = until(lambda: processes(run) == 4 or ended(nodes), "a checkpoint of both nodes")
    print(f"both again after {back:.0f} s, at step {step(run)}")
    assert step(run) < 400, "the node came back too late to be seen"
    finished(nodes, run, 450)
    two, four = "2 processes x 2 micro-batches", "4 processes x 1 micro-batch"
    assert f"going on with {two} instead of {four}: " in a.said
    assert f"going on with {four} instead of {two}: " in a.said
    # The same clips in the same steps: sums alone are in another order.
    losses = [[row["loss"] for row in rows(each)[:STEPS]] for each in (whole, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_link_cut_for_40_seconds(nodes: Pair, whole: Path, class_folders: Path) -> None:
    limit = ("parallel.timeout_seconds=15", f"train.max_steps={STEPS}")
    run = under_way(nodes, command(class_folders, *limit))

    def cut() -> None:
        nodes[1].link("down")
        time.sleep(40)
        nodes[1].link("up")

    gone_on(nodes, run, cut)
    finished(nodes, run)
    same_run(whole, run)
    assert "parallel.timeout_seconds" in nodes[0].said
    assert f"({nodes[1].name} pid" in nodes[0].said, "the processes beyond the cut are named"


def test_the_loss_of_the_head_node_ends_the_other(nodes: Pair, class_folders: Path) -> None:
    run = under_way(nodes, command(class_folders))
    nodes[0].die()
    assert nodes[1].wait(60) not in (0, None)
    assert "another process is gone" in nodes[1].said
    # The same command again goes on from the last checkpoint.
    kept = loaded(run)["step"]
    again = under_way(nodes, command(class_folders, f"train.max_steps={STEPS}"))
    finished(nodes, again)
    assert f"going on from step {kept} of" in nodes[0].said


def test_a_head_node_without_power_ends_the_other(nodes: Pair, class_folders: Path) -> None:
    run = under_way(nodes, command(class_folders))
    nodes[0].link("down")  # so that nobody says that it is gone
    nodes[0].die()
    began = time.monotonic()
    assert nodes[1].wait(60) == 1
    print(f"the other ended after {time.monotonic() - began:.0f} s")
    assert "where all meet, has not answered for 5" in nodes[1].said
    assert loaded(run)["step"] >= 40


def test_a_process_that_stands_still_is_named_and_replaced(
    nodes: Pair, whole: Path, class_folders: Path
) -> None:
    limit = ("parallel.timeout_seconds=15", f"train.max_steps={STEPS}")
    run = under_way(nodes, command(class_folders, *limit))
    gone_on(nodes, run, nodes[1].workers()[1].suspend)
    finished(nodes, run)
    same_run(whole, run)
    assert f"rank 3 ({nodes[1].name} pid" in said(nodes)
    assert "has not been heard of" in said(nodes)


def test_an_error_of_one_process_ends_all_and_is_told(nodes: Pair, class_folders: Path) -> None:
    trouble = ("model.build._target_=my_models.troubled", "+model.build.trouble=raise",
               "+model.build.rank=3", "+model.build.calls=20", "~model.build.width",
               "~model.build.dropout")  # fmt: skip
    for node in nodes:
        launch(nodes, node, command(class_folders, *trouble), restarts=0)
    codes = [node.wait(300) for node in nodes]
    assert 0 not in codes
    assert "vidtrain: rank 3: failed, see above" in nodes[1].said
    assert "ZeroDivisionError: a bug of this model" in nodes[1].said
    assert "another process is gone" in nodes[0].said


def test_a_node_without_the_videos_is_named(nodes: Pair, class_folders: Path) -> None:
    nodes[1].hidden.append(class_folders)
    for node in nodes:
        launch(nodes, node, command(class_folders), restarts=0)
    codes = [node.wait(300) for node in nodes]
    assert 0 not in codes
    told = [line for line in nodes[1].said.splitlines() if line.startswith("vidtrain: rank 2: ")]
    assert len(told) == 1 and str(class_folders) in told[0]


def test_a_loss_that_is_not_finite_is_left_out_by_all(
    nodes: Pair, class_folders: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(class_folders, tmp_path / "poisoned")
    white = np.full((16, 40, 64, 3), 255, np.uint8)
    write_video(root / "train" / "light" / "train02.mp4", white)
    overflows = ("model.build._target_=my_models.overflowing", "~model.build.width",
                 "~model.build.dropout", "train.max_steps=6")  # fmt: skip
    for node in nodes:
        launch(nodes, node, command(root, *overflows))
    run = tmp_path / "runs/nodes"
    finished(nodes, run, 6)
    text = (run / "nonfinite.jsonl").read_text()
    left_out = [json.loads(line) for line in text.splitlines()]
    assert len(left_out) == 2, "once in each of two epochs"
    for row in left_out:
        assert "light/train02.mp4" in row["videos"] and len(row["videos"]) == 8
        assert row["loss"].count("nan") + row["loss"].count("inf") == 1, "of one process"
