"""Which provider runs a call on a GPU, that its result is the same, and what is remembered of refusals."""

import inspect
import itertools
import sys

import pytest
import torch
from attention_inputs import check, inputs, masks
from attention_stand_ins import PACKAGES, Machine, machine

from adatp_kernels import flash_attention
from adatp_kernels.attention import call, flash_attn, providers, torch_operators
from adatp_kernels.attention.providers import Candidate, Providers

CAPABILITIES = [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]
EFFICIENT, CUDNN = "_efficient_attention_forward", "_scaled_dot_product_cudnn_attention"
FLASH = "_scaled_dot_product_flash_attention"


def padding(rows, columns):
    return (torch.arange(columns) >= torch.tensor([0, columns // 2])[:, None])[:, None, None, :].expand(2, 1, rows, -1)


def who(packages, cutlass, capability, dim, masked, dtype):
    """Who should run a call, said once more in other words than the package's."""
    if dtype == torch.float32 or masked or capability < (8, 0):
        return [] if dtype == torch.bfloat16 and capability < (8, 0) else [EFFICIENT]
    four = packages in ("FA4", "FA2 and FA4") and cutlass
    if four and (capability[0] == 9 or (capability[0] == 10 and dim in (64, 128, 256))):
        return ["flash_attn_4"]
    if packages == "FA3" and capability[0] == 9:
        return ["flash_attn_3"]
    return ["flash_attn_2"] if packages.startswith("FA2") else [FLASH]


@pytest.mark.parametrize("cutlass", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("packages", PACKAGES)
def test_auto_runs_whatever_is_installed(packages, capability, cutlass, tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=capability, packages=packages, cutlass=cutlass):
        for dim, masked, dtype, (rows, columns) in itertools.product(
            (64, 128, 192, 256),
            (False, True),
            (torch.float16, torch.bfloat16, torch.float32),
            ((1, 37), (5, 37)),
        ):
            Machine.ran.clear()
            mask = padding(rows, columns) if masked else None
            check(*inputs(rows, columns, dim=dim, dtype=dtype), "auto", mask=mask)
            assert Machine.ran == who(packages, cutlass, capability, dim, masked, dtype), (dim, masked, dtype, rows)


@pytest.mark.parametrize(
    ("provider", "packages", "capability", "change", "reason"),
    [
        ("flash_attn_2", "none", (9, 0), {}, "the module flash_attn is not installed"),
        ("flash_attn_3", "none", (9, 0), {}, "the module flash_attn_interface is not installed"),
        ("flash_attn_4", "none", (9, 0), {}, "the module flash_attn.cute is not installed"),
        ("flash_attn_4", "FA2", (9, 0), {}, "flash_attn_func of the module flash_attn.cute has no parameter for the LSE"),
        ("flash_attn_2", "FA4", (8, 0), {}, "the module flash_attn has no flash_attn_func"),
        ("flash_attn_3", "old FA3", (9, 0), {}, "flash_attn_func of the module flash_attn_interface has no parameter for the"),
        ("flash_attn_3", "FA3", (10, 0), {}, "it needs a GPU of compute capability [9], not (10, 0)"),
        ("flash_attn_2", "FA2", (7, 5), {}, "it needs a GPU of compute capability [8, 9, 10, 12], not (7, 5)"),
        ("flash_attn_4", "FA4", (10, 0), {"dim": 192}, "the head dim must be at most 128, or 256, not 192"),
        ("flash_attn_2", "FA2", (9, 0), {"dim": 60}, "a multiple of 8 up to 256, not 60"),
        ("flash_attn_2", "FA2", (9, 0), {"dim": 264}, "a multiple of 8 up to 256, not 264"),
        ("flash_attn_2", "FA2", (9, 0), {"dtype": torch.float32}, "float16 and bfloat16, not torch.float32"),
        ("flash_attn_4", "FA4", (9, 0), {"mask": True}, "it takes no mask"),
        ("torch", "none", (7, 5), {}, "capability 8.0, not (7, 5); bfloat16 needs"),
        ("torch", "none", (9, 0), {"dtype": torch.float64}, "not torch.float64"),
        ("torch", "none", (9, 0), {"dim": 60}, "a multiple of 8 up to 256, not 60; its memory-efficient operator needs"),
    ],
)  # fmt: skip
def test_a_named_provider_says_why_it_cannot(provider, packages, capability, change, reason, tmp_path, monkeypatch):
    change = {"dtype": torch.bfloat16} | change
    mask = padding(5, 37) if change.pop("mask", False) else None
    tensors = inputs(5, 37, **change)
    with machine(monkeypatch, tmp_path, capability=capability, packages=packages, cutlass=True):
        with pytest.raises(RuntimeError) as caught:
            flash_attention(*tensors, mask=mask, provider=provider)
        assert str(caught.value).startswith(f"provider: {provider!r} cannot run this call: ")
        assert reason in str(caught.value)
        check(*tensors, "auto", mask=mask)


def test_a_package_without_what_it_needs_says_what(tmp_path, monkeypatch):
    with (
        machine(monkeypatch, tmp_path, capability=(9, 0), packages="FA2"),
        pytest.raises(RuntimeError, match=r"flash_attn\.cute cannot be imported: .*No module named 'cutlass'"),
    ):
        flash_attention(*inputs(5, 37, dtype=torch.bfloat16), provider="flash_attn_4")


def test_nothing_behind_the_chosen_one_is_imported(tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=(8, 0), packages="FA2 and FA4", cutlass=True):
        flash_attention(*inputs(5, 37, dtype=torch.float16))
        assert Machine.ran == ["flash_attn_2"]
        assert "flash_attn.cute" not in sys.modules


def test_a_broken_installation_is_a_refusal(tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=(9, 0), packages="FA2", cutlass=True):
        (tmp_path / "flash_attn/__init__.py").write_text("raise OSError('undefined symbol: _ZN3c104cuda9SetDeviceEi')")
        tensors = inputs(5, 37, dtype=torch.bfloat16)
        check(*tensors, "auto")
        assert Machine.ran == [FLASH]
        with pytest.raises(RuntimeError, match="flash_attn cannot be imported: OSError: undefined symbol"):
            flash_attention(*tensors, provider="flash_attn_2")


@pytest.mark.parametrize(
    ("version", "packages", "capability"),
    [(2, "FA2", (8, 0)), (2, "FA2 and FA4", (12, 0)), (3, "FA3", (9, 0)), (4, "FA4", (8, 0)), (4, "FA4", (10, 0)), (4, "FA4", (12, 0))],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "causal"), [(5, 37, True), (37, 37, True), (5, 37, False), (9, 4, True)])
def test_flash_attn(version, packages, capability, dtype, rows, columns, causal, tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=capability, packages=packages, cutlass=True):
        check(*inputs(rows, columns, dtype=dtype), f"flash_attn_{version}", causal=causal, scale=0.2)
        assert Machine.ran == [f"flash_attn_{version}"]
        (given,) = Machine.arguments
        assert [tuple(given[name].shape) for name in "qkv"] == [
            (2, rows, 4, 64),
            (2, columns, 2, 64),
            (2, columns, 2, 64),
        ]
        assert (given["softmax_scale"], given["causal"]) == (0.2, causal)


def test_flash_attn_gets_the_default_scale(tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=(9, 0), packages="FA2"):
        flash_attention(*inputs(5, 37, dtype=torch.float16), provider="flash_attn_2")
        assert Machine.arguments[0]["softmax_scale"] == 64**-0.5


def test_flash_attn_is_refused_on_the_cpu():
    with pytest.raises(
        RuntimeError, match=r"^provider: 'flash_attn_2' cannot run this call: it needs a CUDA device, not cpu"
    ):
        flash_attention(*inputs(5, 37, dtype=torch.float16), provider="flash_attn_2")


def test_flash_attn_too_old_to_align_causal_masks_to_the_lower_right_is_refused(tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=(9, 0), packages="FA2"):
        old = "def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, return_attn_probs=False): 1 / 0"
        (tmp_path / "flash_attn/__init__.py").write_text(old)
        check(*inputs(5, 37, dtype=torch.float16), "auto")
        with pytest.raises(RuntimeError, match=r"older than FlashAttention 2\.3"):
            flash_attention(*inputs(5, 37, dtype=torch.float16), provider="flash_attn_2")


@pytest.mark.parametrize("result", ["out, lse[..., None]", "out, None", "out.transpose(1, 2), lse"])
def test_a_result_of_another_shape_is_not_believed(result, tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=(9, 0), packages="FA2"):
        module = tmp_path / "flash_attn/__init__.py"
        own = "return kernels.flash_attn_func('2', locals())"
        assert own in module.read_text()
        changed = f"(out, lse, _) = kernels.flash_attn_func('2', locals()); return {result}"
        module.write_text(module.read_text().replace(own, changed))
        with pytest.raises(RuntimeError, match="flash_attn_2.*this version returns an output of shape"):
            flash_attention(*inputs(5, 37, dtype=torch.float16), provider="flash_attn_2")
        check(*inputs(5, 37, dtype=torch.float16), "auto")


def test_a_package_launches_on_the_tensors_device(tmp_path, monkeypatch):
    entered = []

    class DeviceOf:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            entered.append(self.tensor)

        def __exit__(self, *_):
            entered.append(list(Machine.ran))

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    tensors = inputs(5, 37, dtype=torch.float16)
    with machine(monkeypatch, tmp_path, capability=(9, 0), packages="FA4", cutlass=True):
        flash_attention(*tensors)
    assert entered[0] is tensors[0]
    assert entered[1] == ["flash_attn_4"]


def test_signatures_are_looked_at_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(inspect, "signature", lambda *args, own=inspect.signature: looked.append(args) or own(*args))
    with machine(monkeypatch, tmp_path, capability=(9, 0), packages="FA4", cutlass=True):
        for columns in (37, 38, 39):
            flash_attention(*inputs(1, columns, dtype=torch.float16))
        assert len(looked) == 1
        monkeypatch.setattr(flash_attn, "refuses", None)  # nor is anything asked again
        flash_attention(*inputs(1, 40, dtype=torch.float16))


SHAPES = [(37, 37, True), (5, 37, False), (1, 37, True), (5, 37, True), (9, 4, True)]
CASES = [
    (operator, *shape)
    for operator, shapes in (
        (torch_operators.run_flash, SHAPES),
        (torch_operators.run_efficient, SHAPES),
        (torch_operators.run_cudnn, SHAPES[:2]),  # it refuses the others
    )
    for shape in shapes
]


@pytest.mark.parametrize("kind", masks(1, 1))
@pytest.mark.parametrize(("operator", "rows", "columns", "causal"), CASES[len(SHAPES) :])  # flash takes no mask
def test_operators_of_torch_with_masks(kind, operator, rows, columns, causal, tmp_path, monkeypatch):
    run_only(operator, monkeypatch)
    with machine(monkeypatch, tmp_path, capability=(8, 0)):
        for heads, kv_heads, dtype in ((4, 2, torch.float16), (4, 4, torch.bfloat16), (4, 1, torch.float16)):
            tensors = inputs(rows, columns, heads=heads, kv_heads=kv_heads, dtype=dtype)
            check(*tensors, "torch", causal=causal, mask=masks(rows, columns)[kind])
        assert set(Machine.ran) == {EFFICIENT if operator is torch_operators.run_efficient else CUDNN}


@pytest.mark.parametrize(("operator", "rows", "columns", "causal"), CASES)
def test_operators_of_torch_without_a_mask(operator, rows, columns, causal, tmp_path, monkeypatch):
    run_only(operator, monkeypatch)
    with machine(monkeypatch, tmp_path, capability=(8, 0)):
        for heads, kv_heads, dim in ((4, 2, 64), (6, 6, 128), (14, 2, 80)):
            tensors = inputs(rows, columns, heads=heads, kv_heads=kv_heads, dim=dim, dtype=torch.float16)
            strided = [t.mT.contiguous().mT for t in tensors]
            check(*strided, "torch", causal=causal)


def run_only(operator, monkeypatch):
    (candidate,) = [candidate for candidate in providers.DENSE.candidates if candidate.run is operator]
    monkeypatch.setattr(providers.DENSE, "candidates", (candidate,))


def test_cudnn_is_refused_what_it_does_not_take(tmp_path, monkeypatch):
    run_only(torch_operators.run_cudnn, monkeypatch)
    with machine(monkeypatch, tmp_path, capability=(8, 0)):
        for shape, dim, reason in (
            ((1, 37), 64, "one row"),
            ((5, 37), 64, "as many rows"),
            ((37, 37), 192, "at most 128"),
        ):
            with pytest.raises(RuntimeError, match=reason):
                flash_attention(*inputs(*shape, dim=dim, dtype=torch.float16), provider="torch")


@pytest.mark.parametrize("rows", [1, 40])
def test_a_padded_batch_has_no_map_of_any_head(rows, tmp_path, monkeypatch):
    """What memory-efficient attention is given: a bias of one head's size, and one row's where all rows see the same."""
    query, key, value = inputs(rows, 40, heads=14, kv_heads=2, dtype=torch.bfloat16)
    causal = torch.ones(rows, 40, dtype=torch.bool).tril(40 - rows)
    with machine(monkeypatch, tmp_path, capability=(9, 0)):
        for mask, room in (
            (padding(rows, 40), 2 * 48),  # rows of whole 16 elements
            (padding(rows, 40) & causal, 2 * rows * 48),
        ):
            Machine.arguments.clear()
            check(query, key, value, "auto", causal=False, mask=mask)
            bias = Machine.arguments[0][3]
            assert bias.untyped_storage().nbytes() == room * bias.itemsize
            heads_seen = 2 if rows == 1 else 14  # a single row needs no copy of the keys
            assert Machine.arguments[0][1].shape[2] == heads_seen
            if rows == 1:
                assert Machine.arguments[0][1].data_ptr() == key.data_ptr()


# What a call that was accepted may do all the same.


def fall(*outcomes):
    """Providers a, b, … that return their number or raise, and the list of those that were tried."""
    tried = []

    def candidate(name, outcome):
        def run(call):
            tried.append(name)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return Candidate(name, lambda kind: outcome if isinstance(outcome, str) else None, run)

    return Providers(*map(candidate, "abcd", outcomes)), tried


A_CALL = call.Call(*inputs(5, 37), True, 0.125, None)
ANOTHER = A_CALL._replace(query=A_CALL.query.half())


@pytest.mark.parametrize(
    "error", [AssertionError("no"), NotImplementedError("no"), ImportError("no"), RuntimeError("no"), TypeError("no")]
)
def test_auto_passes_over_one_that_raises_and_remembers_it(error):
    choice, tried = fall("refused", error, 1)
    assert [choice.run("auto", A_CALL) for _ in range(3)] == [1, 1, 1]
    assert tried == ["b", "c", "c", "c"]
    choice.run("auto", ANOTHER)  # another kind of call
    assert tried[4:] == ["b", "c"]
    choice.forget()
    choice.run("auto", A_CALL)
    assert tried[6:] == ["b", "c"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 36.00 GiB"),
        torch.AcceleratorError("an illegal memory access was encountered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cudaErrorLaunchFailure"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 36 bytes"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("name", ["auto", "a"])
def test_a_fault_is_no_refusal(error, name):
    choice, tried = fall(error, 1)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            choice.run(name, A_CALL)
        assert caught.value is error
    assert tried == ["a", "a"]


def test_a_named_provider_that_raises_says_so():
    choice, tried = fall(AssertionError("head dim"), 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="^provider: 'a' cannot run this call: AssertionError: head dim"):
            choice.run("a", A_CALL)
    assert tried == ["a", "a"]
    assert choice.run("b", A_CALL) == 1


def test_the_last_one_raises_what_it_raises():
    choice, _ = fall(AssertionError("first"), ZeroDivisionError("last"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="last"):
            choice.run("auto", A_CALL)


def test_a_compiled_call_chooses_too():
    query, key, value = inputs(5, 37)
    compiled = torch.compile(flash_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(query, key, value), flash_attention(query, key, value))
