"""Flash attention that also returns the LSE, dense and packed, from whichever provider can run the call.

Providers differ in layout, in causal alignment and in what they return for a row that sees nothing;
all of that is settled here, and nothing else in the package knows of it.
"""

from adatp_kernels.attention.functional import flash_attention, flash_attention_varlen

__all__ = ["flash_attention", "flash_attention_varlen"]
