"""A program's text as instructions and the loops that they run in.

Three languages are read: NVIDIA's machine code as `nvdisasm -c` prints it, AMD's assembly, and the LLVM intermediate
representation that Triton hands to either's code generator. Loops are the natural ones of the control flow, not
stretches of text: code generators move what is rarely run, such as the wait for a barrier, behind the loop's end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Language:
    """How lines are told apart. Each pattern's first group is the label, the jump's targets, or the instruction."""

    label: re.Pattern[str]
    instruction: re.Pattern[str]
    jump: re.Pattern[str]  # of an instruction that may go elsewhere
    target: re.Pattern[str]  # within such an instruction
    final: re.Pattern[str]  # what never goes on to the next line
    padding: re.Pattern[str]  # fills space and is not counted


LANGUAGES = {
    "sass": Language(
        label=re.compile(r"^\s*(\.L_x_\d+|\$\w+):"),
        instruction=re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;"),
        jump=re.compile(r"\bBRA\b"),
        target=re.compile(r"`\((\.L_x_\d+)\)"),
        # A branch with a condition has it in front, or as an operand before its target.
        final=re.compile(r"^(?:BRA(?:\.\w+)* `|EXIT\b|RET\b|BRX\b)"),
        padding=re.compile(r"^NOP\b"),
    ),
    "amdgcn": Language(
        label=re.compile(r"^(\.LBB\w+):"),
        instruction=re.compile(r"^\s+([a-z]\w+(?:\s.*)?)$"),
        jump=re.compile(r"^s_c?branch"),
        target=re.compile(r"(\.LBB\w+)"),
        final=re.compile(r"^s_(?:branch|endpgm|setpc_b64|trap)\b"),
        padding=re.compile(r"^s_(?:nop|code_end)\b"),
    ),
    "llir": Language(
        label=re.compile(r"^([\w.$-]+):"),
        instruction=re.compile(r"^  (\S.*)$"),
        jump=re.compile(r"^(?:br|switch)\b"),
        target=re.compile(r"label %([\w.$-]+)"),
        final=re.compile(r"^(?:br|ret|switch|unreachable)\b"),
        padding=re.compile(r"^(?:call void @llvm\.dbg|#dbg)"),
    ),
}

_SWITCH = re.compile(r"^ +switch .*\[\n(?:.*\n)*?\s*\]", re.MULTILINE)


@dataclass
class Block:
    """Instructions that are run one after the other, and the blocks that may follow."""

    instructions: list[str] = field(default_factory=list)
    next: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Listing:
    """A kernel's blocks in the text's order, and its loops as the blocks that each is made of."""

    blocks: list[Block]
    loops: list[frozenset[int]]

    def instructions(self, of: frozenset[int] | None = None) -> list[str]:
        """Those of some blocks, or all."""
        chosen = range(len(self.blocks)) if of is None else sorted(of)
        return [instruction for index in chosen for instruction in self.blocks[index].instructions]

    def loop_with(self, wanted: re.Pattern[str]) -> list[str]:
        """The innermost loop with an instruction that is `wanted`: the longest of several, empty if there is none."""
        having = [loop for loop in self.loops if any(map(wanted.search, self.instructions(loop)))]
        innermost = [loop for loop in having if not any(other < loop for other in having)]
        return max(map(self.instructions, innermost), key=len, default=[])


def read(text: str, language: str) -> Listing:
    """A kernel's text in one of LANGUAGES."""
    text = _SWITCH.sub(lambda match: match[0].replace("\n", " "), text)
    blocks = _blocks(text.splitlines(), LANGUAGES[language])
    return Listing(blocks, _loops(blocks))


def _blocks(lines: list[str], language: Language) -> list[Block]:
    blocks, starts, jumps = [Block()], {}, []
    falls_through = True

    def begin() -> None:
        if falls_through:
            blocks[-1].next.add(len(blocks))
        blocks.append(Block())

    for line in lines:
        if match := language.label.match(line):
            begin()
            starts[match[1]], falls_through = len(blocks) - 1, True
        elif (match := language.instruction.match(line)) and not language.padding.match(match[1]):
            if not falls_through:
                begin()
            instruction = match[1]
            blocks[-1].instructions.append(instruction)
            falls_through = not language.final.search(instruction)
            if language.jump.search(instruction):
                jumps += [(len(blocks) - 1, target) for target in language.target.findall(instruction)]
                if falls_through:
                    begin()
    for index, target in jumps:
        if target in starts:
            blocks[index].next.add(starts[target])
    return [Block(block.instructions, {index for index in block.next if index < len(blocks)}) for block in blocks]


def _loops(blocks: list[Block]) -> list[frozenset[int]]:
    """The natural loops: what leads back to a block without which it cannot be reached. One for each such block."""
    before: dict[int, set[int]] = defaultdict(set)
    reached, waiting = {0}, [0]
    while waiting:
        index = waiting.pop()
        for following in blocks[index].next:
            before[following].add(index)
            if following not in reached:
                reached.add(following)
                waiting.append(following)
    dominators = _dominators(sorted(reached), before)
    loops: dict[int, set[int]] = {}
    for index in reached:
        for head in blocks[index].next & dominators[index]:
            body = loops.setdefault(head, {head})
            waiting = [index]
            while waiting:
                if (inside := waiting.pop()) not in body:
                    body.add(inside)
                    waiting += before[inside]
    return [frozenset(body) for body in loops.values()]


def _dominators(reached: list[int], before: dict[int, set[int]]) -> dict[int, set[int]]:
    """Of each block those, itself included, that every way to it leads through."""
    found = {index: set(reached) for index in reached} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for index in reached[1:]:
            smaller = set.intersection(*(found[previous] for previous in before[index])) | {index}
            if smaller != found[index]:
                found[index], changed = smaller, True
    return found
