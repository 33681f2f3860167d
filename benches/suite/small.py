"""Our kernels, once each, for tools that watch them: a profiler at the target shape, or a sanitizer at a small one.

    python -m suite.small profile score|select|native      what lies between the profiler's marks is one call
    python -m suite.small sanitize                         every operation on every backend, verified

A sanitizer makes every kernel up to a hundred times slower, PyTorch's own included. So inputs come from the host, and results
go back there to be checked.
"""

from __future__ import annotations

import sys

import measure
import torch
from cases import column_sums, gather, select, stage
from cases.case import Case, Scale, dry_scale, gpu_scale

from suite.timed import DRY, Sizes, cuda_library

WATCHED = {
    "score": ("column_sums", "adatp, LSE given"),
    "select": ("select", "adatp"),
    "native": ("stage", "adatp, LSE given (native)"),
}


def profile(what: str, dry: bool) -> int:
    """One call of what is watched, after it was verified."""
    native = what == "native"
    scale = dry_scale({"": "auto", " (native)": "native"}) if dry else gpu_scale(native)
    sizes = DRY if dry else Sizes()
    operation, name = WATCHED[what]
    if operation == "column_sums":
        case = column_sums.column_sums(scale, sizes.visual, sizes.text)
    elif operation == "select":
        case = select.select(scale, sizes.visual, "strict")
    else:
        case = stage.stage(scale, sizes.visual, sizes.text)
    case.verify(name)
    inputs = case.make(0)
    if dry:
        case.variants[name].call(*inputs)
        return 0
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    case.variants[name].call(*inputs)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0


def sanitize(dry: bool) -> int:
    """All operations, with inputs made and results checked on the host."""
    if dry:
        device, backends = torch.device("cpu"), {"": "auto"}
    else:
        device, backends = torch.device("cuda"), {"": "triton"} | ({" (native)": "native"} if cuda_library() else {})
    scale = Scale(torch.device("cpu"), torch.bfloat16, 4, 2, 64, 64, 20, backends)
    cases = [
        column_sums.column_sums(scale, 160, 5, batch=2),
        select.select(scale, 160, "strict"),
        select.select(scale, 160, "off", batch=2),
        gather.gather(scale, 160, 25, batch=2),
        stage.stage(scale, 160, 5),
    ]
    count = 0
    for case in cases:
        for name, variant in case.variants.items():
            if variant.backend is not None:
                _once(case, name, device)
                count += 1
    print(f"verified {count}")
    return 0


def _once(case: Case, name: str, device: torch.device) -> None:
    inputs = case.make(1234)
    with measure.poisoned_memory():
        result = case.variants[name].call(*_moved(inputs, device))
    case.check(name, _moved(result, torch.device("cpu")), inputs)


def _moved(value: object, device: torch.device) -> object:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(item, device) for item in value)
    return value


if __name__ == "__main__":
    dry = "--dry" in sys.argv
    sys.exit(sanitize(dry) if sys.argv[1] == "sanitize" else profile(sys.argv[2], dry))
