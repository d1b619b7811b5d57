"""The variables of the portable leg make a CPU act like an older one: AVX2, and no hardware for bfloat16."""

import os
import platform
import subprocess
import sys

import pytest
import torch

OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
LOOK = """
import time
import torch
torch.set_num_threads(1)
print("capability", torch.backends.cpu.get_cpu_capability())
torch.nn.functional.conv2d(torch.randn(1, 3, 32, 32), torch.randn(8, 3, 4, 4))  # oneDNN says which instructions it takes
seconds = {}
for dtype in (torch.float32, torch.bfloat16):
    one, other = torch.randn(256, 256, dtype=dtype), torch.randn(1024, 256, dtype=dtype)
    torch.nn.functional.linear(one, other)
    taken = []
    for _ in range(5):
        started = time.process_time()
        torch.nn.functional.linear(one, other)
        taken.append(time.process_time() - started)
    seconds[dtype] = min(taken)
print("ratio", seconds[torch.bfloat16] / seconds[torch.float32])
"""


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="the variables are about x86 processors with AVX2",
)
def test_the_variables_are_honoured_and_bfloat16_is_slow_under_them():
    environment = os.environ | OLDER | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert "capability AVX2" in lines
    instructions = [line.split("isa:")[1] for line in lines if ",cpu,isa:" in line]
    if torch.backends.mkldnn.is_available():
        assert instructions == ["Intel AVX2"]
    ratio = next(float(line.split()[1]) for line in lines if line.startswith("ratio"))
    assert ratio > 2, f"a bfloat16 product takes {ratio:.1f} times as long as one of float32"
