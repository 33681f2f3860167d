""" "adatp" is an attention implementation of transformers, in whatever order the two are imported."""

import subprocess
import sys

import pytest

CHECK = """
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
assert "adatp" in ALL_ATTENTION_FUNCTIONS and "adatp" in ALL_MASK_ATTENTION_FUNCTIONS
"""
ORDERS = {
    "adatp first": "import adatp_kernels, sys; assert 'transformers' not in sys.modules\nimport transformers\n",
    "transformers first": "import transformers\nimport adatp_kernels\n",
    "models first": "import transformers.modeling_utils\nimport adatp_kernels\n",
    "accelerate at once": "import adatp_kernels; adatp_kernels.accelerate\n",
}


@pytest.mark.parametrize("order", ORDERS)
def test_registered_in_any_order_of_import(order):
    subprocess.run([sys.executable, "-c", ORDERS[order] + CHECK], check=True, timeout=120)


def test_importing_the_package_leaves_transformers_alone():
    code = (
        "import adatp_kernels, sys; assert not [name for name in sys.modules if name.split('.')[0] == 'transformers']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
