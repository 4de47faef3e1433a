"""The compiled loops' vector code: products of any number of rows, exp and silu."""

import pytest
import torch


def images(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 8, 13, 31])
@pytest.mark.parametrize("tallest", [6, 12])  # of processors with AVX2 and AVX-512
def test_products_of_any_number_of_rows(rows, tallest):
    from bdg_fast.kernels.unet.cpu_products import ROOM, products
    from bdg_fast.kernels.unet.cpu_simd import chunked_tile, product_tile

    a, b = images(rows + ROOM, 32), images(32, 16, seed=1)
    for tile, turned in (
        (chunked_tile, False),
        (lambda n: product_tile(n, "zero", "k"), False),
        (lambda n: product_tile(n, "sum", "rows"), True),
    ):
        out = torch.zeros(rows + ROOM, 16)
        source = a.T.contiguous() if turned else a
        product = products(tile, turned, tallest)
        product(source.data_ptr(), source.stride(0), b.data_ptr(), 16, 32, out.data_ptr(), 16, rows, 0)
        assert torch.allclose(out[:rows], a[:rows] @ b, atol=1e-4)
        assert not out[rows + 1 :].any()


@pytest.mark.parametrize("name", ["exp", "silu"])
def test_exp_and_silu_are_those_of_float32(name):
    import numba

    from bdg_fast.kernels.unet.cpu_simd import elementwise

    apply = elementwise(1, lambda v: getattr(v, name)())

    @numba.njit
    def run(target, count, source):
        apply(target, count, source)

    x = torch.cat([torch.linspace(-110, 87.9, 8000), torch.tensor([0.0, -0.0, 1e-30, -87.3, -87.4, 87.9, 40.0, -40.0])])
    out, exact = torch.empty_like(x), x.double().exp() if name == "exp" else torch.nn.functional.silu(x.double())
    run(out.data_ptr(), len(x), x.data_ptr())
    error, normal = (out.double() - exact).abs(), x > -87
    assert (error <= 4 * 2.0**-24 * exact.abs())[normal].all()
    assert error[~normal].max() < 2e-36
