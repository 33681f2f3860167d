"""What stands before a method, together with what others put before or behind it."""

import pytest

from adatp_kernels.integrations.transformers.methods import MethodWatch


class Thing:
    def name(self):
        return "plain"


def watch(thing):
    return MethodWatch(thing, "name", lambda method, args, kwargs: f"watched {method(*args, **kwargs)}")


@pytest.mark.parametrize("before", [None, lambda: "theirs"])
def test_it_goes_as_it_came(before):
    thing = Thing()
    if before is not None:
        thing.name = before
    held = dict(vars(thing))
    mine = watch(thing)
    assert mine.stands and thing.name() == ("watched plain" if before is None else "watched theirs")
    mine.remove()
    mine.remove()
    assert vars(thing) == held


def test_it_lets_pass_what_still_calls_it_afterwards():
    thing = Thing()
    mine = watch(thing)
    ours = thing.name
    thing.name = lambda: f"theirs of {ours()}"
    assert thing.name() == "theirs of watched plain"
    mine.remove()
    assert thing.name() == "theirs of plain"


def test_there_need_be_no_such_method():
    mine = watch(type("Nothing", (), {})())
    assert not mine.stands
    mine.remove()
