"""Who is to blame when nothing moves. (Real processes that hang: test_parallel.py.)"""

from vidtrain.running.watchdog import Note, blamed, message


def note(rank: int, count: int, *, waiting: bool, silent: bool = False, still: float = 60) -> Note:
    return Note(rank, f"node{rank} pid 7", count, waiting, f"place {count}", still, silent)


def test_one_that_is_behind_is_to_blame() -> None:
    notes = [note(0, 9, waiting=True), note(1, 7, waiting=True), note(2, 9, waiting=True)]
    assert [n.rank for n in blamed(notes)] == [1]
    assert message(notes, 0, 60.4) == (
        "nothing has moved for 60 s (parallel.timeout_seconds): rank 1 (node1 pid 7) has stood at "
        "place 7 for 60 s"
    )


def test_at_the_same_place_it_is_the_one_that_does_not_wait() -> None:
    notes = [note(0, 9, waiting=True), note(1, 9, waiting=False), note(2, 9, waiting=True)]
    assert [n.rank for n in blamed(notes)] == [1]


def test_one_that_is_silent_comes_first() -> None:
    notes = [note(0, 9, waiting=True), note(1, 8, waiting=False), note(2, 9, waiting=True,
                                                                       silent=True)]  # fmt: skip
    assert [n.rank for n in blamed(notes)] == [2]
    assert "has not been heard of since place 9" in message(notes, 0, 60)


def test_nobody_is_blamed_where_all_wait_at_the_same_place() -> None:
    notes = [note(rank, 9, waiting=True) for rank in range(3)]
    assert blamed(notes) == []
    assert "all processes wait at the same place (place 9)" in message(notes, 1, 60)


def test_many_are_counted_and_a_lost_store_is_said() -> None:
    notes = [note(rank, 9 if rank < 2 else 8, waiting=True) for rank in range(12)]
    assert message(notes, 0, 60).endswith("; and 2 more")
    assert "the store that rank 0 holds does not answer" in message([], 0, 60)
