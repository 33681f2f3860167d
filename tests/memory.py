"""How much memory a function asks PyTorch's CPU allocator for."""

from torch.profiler import ProfilerActivity, profile


def largest_allocation(function):
    """Bytes of the largest piece that PyTorch's CPU allocator gave out while `function` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        function()
    events = run.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    assert sizes
    return max(sizes)
