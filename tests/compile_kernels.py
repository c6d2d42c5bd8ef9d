"""Compiles every kernel for a GPU that need not be there: `python compile_kernels.py CAPABILITY`.

The interpreter takes more than the compiler does. A launch is replaced by a compilation for the
types of its arguments, with the constants that a launch would have made of them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from volumediff.networks import (
    _affine_kernels,
    _affine_triton,
    _norm_act_kernels,
    _norm_act_triton,
)

TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}
# Channels, groups, voxels along one axis, dtype; one voxel makes constants of several arguments.
CASES = [
    (64, 32, 32, torch.bfloat16),
    (64, None, 32, torch.bfloat16),
    (29, 1, 1, torch.float32),
    (29, None, 1, torch.float32),
]


class Compiled:
    """A kernel whose launches compile it."""

    def __init__(self, kernel, capability):
        self.kernel, self.target = kernel, GPUTarget("cuda", capability, 32)

    def __getitem__(self, grid):
        def launch(*arguments, num_warps=4):
            types, constants, attributes = {}, {}, {}
            for i, (p, value) in enumerate(zip(self.kernel.params, arguments, strict=True)):
                if p.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                    types[p.name], constants[(i,)] = "constexpr", value
                elif isinstance(value, torch.Tensor):
                    types[p.name] = TYPES[value.dtype]
                elif isinstance(value, int):
                    types[p.name] = "i32" if value < 2**31 else "i64"
                else:
                    types[p.name] = "fp32"
                whole = isinstance(value, torch.Tensor) or (types[p.name][0] == "i")
                if whole and (not isinstance(value, int) or value % 16 == 0):
                    attributes[(i,)] = [["tt.divisibility", 16]]
            source = ASTSource(self.kernel, types, constants, attributes)
            options = {"num_warps": num_warps}
            binary = triton.compile(source, target=self.target, options=options)
            assert binary.asm["cubin"]
            compiled.add(self.kernel.__name__)

        return launch


compiled, kernels = set(), set()
for module in (_norm_act_kernels, _affine_kernels):
    for name, kernel in list(vars(module).items()):
        if isinstance(kernel, triton.JITFunction) and not name.startswith("_"):
            kernels.add(name)
            setattr(module, name, Compiled(kernel, int(sys.argv[1])))
for channels, groups, side, dtype in CASES:
    x = torch.zeros(1, channels, side, side, side, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    film = torch.zeros(1, channels, requires_grad=True)
    y = _norm_act_triton.FusedNormAct.apply(x, film, film, groups, 1e-5)
    torch.autograd.grad(y, (x, film), torch.zeros_like(y))
    x, film = x.detach(), film.detach()
    _affine_triton.affine_silu(x, film, film)
    _affine_triton.affine_silu_gradient(x, x, film, film)
    _affine_triton.add_affine(x, x, film, film)
    _affine_triton.add_affine(None, x, film, film)
    slabs = [_norm_act_triton.statistics(x, channels)] * 2
    moments = _affine_triton.merged_moments(slabs, count=2 * slabs[0].count)
    how = {"groups": groups or 1, "eps": 1e-5}
    *_, middle, inverse = _affine_triton.norm_affine(moments, film, film, **how)
    _affine_triton.norm_affine_gradient(film, film, film, middle, inverse, count=side**3)
assert compiled == kernels, kernels - compiled
sys.stdout.write(f"{len(compiled)} kernels\n")
