"""Workers of a job: what becomes of those that die, and of what they die of."""

import pytest

from bdg_fast.jobs import Item, WorkerLost, run_here
from bdg_fast.jobs.work import ATTEMPTS, Worker


class Death(BaseException):
    """Of a process."""


class Dying:
    """Work that dies of images named deadly, or before it begins."""

    def __init__(self, at_start=False):
        self.at_start, self.seen = at_start, []

    def load(self):
        if self.at_start:
            raise Death
        return self.chunk

    def chunk(self, items, parts):
        for item in items:
            self.seen.append(item.id)
            if "deadly" in item.id:
                raise Death
            yield {"id": item.id, "output": item.id, "status": "done"}


def lives(work, items, parts):
    """Lines of a chunk by as many workers as it takes, and how many died."""
    for died in range(20):
        try:
            return list(Worker(work, parts, "w")(items, "token")), died
        except Death:
            continue
    raise AssertionError("no end")


def test_the_image_that_workers_die_of_is_named_and_the_rest_is_done(tmp_path):
    work, items = Dying(), [Item(name, name, name, False) for name in ("a", "deadly", "b", "c", "deadly too")]
    lines, died = lives(work, items, tmp_path)
    assert died == ATTEMPTS + 2
    assert {line["id"]: line["status"] for line in lines} == {
        "a": "done", "deadly": "failed", "b": "done", "c": "done", "deadly too": "failed",
    }  # fmt: skip
    assert "its worker died" in next(line["error"] for line in lines if line["id"] == "deadly")
    assert work.seen.count("deadly") == ATTEMPTS + 1 and work.seen.count("a") == 1
    assert not (tmp_path / "token.begun").exists()


def test_workers_that_die_before_they_begin_end_the_job(tmp_path):
    with pytest.raises(WorkerLost, match=f"a worker died {ATTEMPTS} times before it had begun"):
        lives(Dying(at_start=True), [Item("a", "a", "a", False)], tmp_path)


def test_lines_are_on_disk_before_the_next_image(tmp_path):
    items = [Item(name, name, name, False) for name in "abc"]
    counts = []
    run_here(Dying(), items, tmp_path, 2, "w", lambda _: counts.append(sum(len(p.read_text().splitlines())
             for p in tmp_path.glob("*.jsonl"))))  # fmt: skip
    assert counts == [1, 2, 3]
