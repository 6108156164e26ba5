"""Runs side by side: results by name in the order of the jobs, and no failure that waits for ever."""

import os

import pytest

from poise.commands.demo import run_side_by_side


def double(number, report):
    report("working", 1, 1)
    return 2 * number


def fail(report):
    raise ValueError("no such data")


def vanish(report):
    os._exit(3)


def test_results_stand_in_the_order_of_the_jobs():
    results = run_side_by_side({"one": (double, (1,)), "two": (double, (2,))})
    assert list(results.items()) == [("one", 2), ("two", 4)]


@pytest.mark.parametrize(("job", "message"), [(fail, "bad: ValueError: no such data"), (vanish, "exit code 3")])
def test_a_failing_job_ends_the_others_and_says_why(job, message):
    with pytest.raises(RuntimeError, match=message):
        run_side_by_side({"bad": (job, ()), "good": (double, (1,))})
