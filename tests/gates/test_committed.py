"""Numbers beside those of the last state: what counts as worse, and that a file keeps what was written."""

from gates import committed
from gates.report import Report, Row

WAS = {
    "instructions": 1000,
    "loop": 400,
    "divisions": 0,
    "barriers": 5,
    "registers": 90,
    "spilled": 0,
    "shared": 512,
    "products": 8,
}
KERNEL = "_column_sums_kernel"


def judged(changes, was=WAS, wrong=()):
    report = Report("sm_90", {f"a case: {KERNEL}": was} if was else {})
    report.add_case("a case", [Row(KERNEL, "hash", {**WAS, **changes}, list(wrong))])
    return report


def test_more_than_five_percent_is_worse(capsys):
    assert not judged({}).failures
    assert not judged({"loop": 420, "products": 16}).failures
    for changes in ({"loop": 421}, {"divisions": 1}, {"barriers": 6}, {"shared": 1024}, {"registers": 95}):
        ((number, now),) = changes.items()
        (failure,) = judged(changes).failures
        assert failure == f"sm_90, a case: {KERNEL}: {number} {now}, was {WAS[number]}"
    assert "400→421" in capsys.readouterr().out.replace("400→420", "")


def test_less_is_better_and_none_is_not_compared():
    assert judged({"loop": 399}).improved
    assert not judged({"loop": 401}).improved
    for report in (judged({"loop": None}), judged({"loop": 9000}, was={**WAS, "loop": None}), judged({}, was=None)):
        assert not report.improved
        assert not report.failures


def test_what_is_never_allowed_fails_without_committed_numbers():
    report = judged({}, was=None, wrong=["spills 8"])
    assert report.failures == [f"sm_90, a case: {KERNEL}: spills 8"]
    assert report.forbidden == report.failures


def test_a_kernel_seen_before_has_no_line_and_two_variants_are_no_case():
    report = judged({})
    report.add_case("another case", [Row(KERNEL, "hash", WAS, [])])
    assert list(report.now) == [f"a case: {KERNEL}"]
    report.add_case("a third", [Row(KERNEL, "one", WAS, []), Row(KERNEL, "two", WAS, [])])
    assert report.forbidden == [f"sm_90, a third makes 2 variants of {KERNEL}; a case has one"]


def test_a_file_keeps_other_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    assert committed.load("9.9.9") == {}
    committed.write("9.9.9", {"sm_90": {"x": WAS}, "sm_80": {"y": WAS}})
    committed.write("9.9.9", {"sm_90": {"z": {"loop": None}}})
    assert committed.load("9.9.9") == {"sm_80": {"y": WAS}, "sm_90": {"z": {"loop": None}}}
