"""The gate's table of one GPU, judged line by line as it is printed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gates import committed
from gates.cases import PROMPTS
from gates.compile_only import KERNELS, counting_variants, nothing_is_read_back
from gates.limits import LAUNCHES, LIMITS, TWICE, VARIANTS

Numbers = dict[str, int | None]
COLUMNS = ("instructions", "loop", "divisions", "barriers", "registers", "shared", "products")


@dataclass(frozen=True)
class Row:
    """One kernel of one case, and what is wrong with it whatever was committed."""

    kernel: str
    hash: str
    numbers: Numbers
    wrong: list[str]


class Report:
    """One GPU's lines so far, the failures among them, and whether any number has become better."""

    def __init__(self, gpu: str, was: dict[str, Numbers]) -> None:
        self.gpu, self.was = gpu, was
        self.now: dict[str, Numbers] = {}
        self.forbidden: list[str] = []  # whatever was committed
        self.worse: list[str] = []
        self.improved = False
        self._seen: set[str] = set()

    @property
    def failures(self) -> list[str]:
        return self.forbidden + self.worse

    def add_case(self, case: str, rows: list[Row]) -> None:
        """A case's kernels, but for those that an earlier case made as well."""
        for kernel, times in Counter(row.kernel for row in rows).items():
            if times > 1 + (kernel in TWICE):
                self._forbid(f"{case} makes {times} variants of {kernel}; a case has one")
        for row in rows:
            if row.hash not in self._seen:
                self._seen.add(row.hash)
                again = f"{case}: {row.kernel}" in self.now
                self._line(case, f"{row.kernel}, again" if again else row.kernel, row.numbers, COLUMNS, row.wrong)

    def add_prompt(self, prompt: str) -> None:
        """What is launched for one of the prompts, and how many variants of each kernel that takes."""
        with counting_variants(self.gpu) as launches, nothing_is_read_back():
            PROMPTS[prompt]()
        for kernel in dict.fromkeys(kernel for kernel, _ in launches):
            variants = [key for launched, key in launches if launched == kernel]
            numbers = {"launches": len(variants), "variants": len(set(variants))}
            most = VARIANTS.get(prompt, {}).get(kernel, 1)
            wrong = [f"variants {numbers['variants']}, at most {most} allowed"] * (numbers["variants"] > most)
            self._line(prompt, kernel, numbers, tuple(numbers), wrong)
        if len(launches) > LAUNCHES.get(prompt, len(launches)):
            self._forbid(f"{prompt}: {len(launches)} launches, at most {LAUNCHES[prompt]} allowed")

    def finish(self) -> None:
        """Name what should be there and is not."""
        made = {name.rsplit(": ", 1)[1] for name in self.now}
        for kernel in KERNELS:
            if kernel.__name__ not in made:
                self._forbid(f"{kernel.__name__} is compiled by no case")
        for gpu, case, kernel in LIMITS:
            if gpu == self.gpu and f"{case}: {kernel}" not in self.now:
                self._forbid(
                    f"{case}: {kernel} has a limit, but this case does not make it, or an earlier one does too"
                )
        self.improved |= bool(self.was) and self.was.keys() != self.now.keys()

    def _line(self, case: str, kernel: str, numbers: Numbers, columns: tuple[str, ...], wrong: list[str]) -> None:
        name = f"{case}: {kernel}"
        self.now[name], was = numbers, self.was.get(name, {})
        worse = [f"{key} {numbers[key]}, was {was[key]}" for key in committed.worse(numbers, was)]
        self.improved |= bool(committed.better(numbers, was))
        self.forbidden += [f"{self.gpu}, {name}: {problem}" for problem in wrong]
        self.worse += [f"{self.gpu}, {name}: {problem}" for problem in worse]
        cells = "".join(f"{_cell(numbers[key], was.get(key, numbers[key])):>13}" for key in columns)
        verdict = "; ".join((*wrong, *worse)) or ("new" if self.was and not was else "ok")
        print(f"{self.gpu:<7} {case:<38} {kernel:<27}{cells}  {verdict}", flush=True)

    def _forbid(self, problem: str) -> None:
        self.forbidden.append(f"{self.gpu}, {problem}")


def _cell(now: int | None, was: int | None) -> str:
    new, old = ("-" if number is None else str(number) for number in (now, was))
    return new if new == old else f"{old}→{new}"
