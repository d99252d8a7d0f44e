"""The work of kernels, which no count of XLA's holds."""

import numpy as np
import pytest

from codegen2_jax.models.dealt_positions import Dealing
from codegen2_jax.sharding import estimates, hlo, kernels, topologies
from codegen2_jax.sharding.estimates import Cost

CALL = 'custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,4]{2,1,0}}'
TEXT = f"""HloModule jit_step, is_scheduled=true

%body (state: (s32[], bf16[2,3,2048,128])) -> (s32[], bf16[2,3,2048,128]) {{
  %state = (s32[]{{:T(128)}}, bf16[2,3,2048,128]{{3,2,1,0}}) parameter(0)
  %counter = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %queries = bf16[2,3,2048,128]{{3,2,1,0}} get-tuple-element(%state), index=1
  %step = s32[]{{:T(128)}} constant(1)
  %next = s32[]{{:T(128)}} add(%counter, %step)
  %tiles = s8[1,4,4]{{2,1,0:T(4,128)(4,1)S(1)}} constant({{...}})
  %keys = bf16[2,1,2048,128]{{3,2,1,0}} constant({{...}})
  %splash_mha_fwd_residuals.2 = bf16[2,3,2048,128]{{3,2,1,0}} custom-call(%tiles, %tiles, %queries, %keys), {CALL}
  %splash_mha_dkv_no_residuals.1 = bf16[2,3,2048,128]{{3,2,1,0}} custom-call(%tiles, %queries, %keys), {CALL}
  %gather_of_rows.7 = bf16[2,3,2048,128]{{3,2,1,0}} custom-call(%queries), custom_call_target="tpu_custom_call"
  ROOT %out = (s32[]{{:T(128)}}, bf16[2,3,2048,128]{{3,2,1,0}}) tuple(%next, %splash_mha_fwd_residuals.2)
}}

%condition (state.1: (s32[], bf16[2,3,2048,128])) -> pred[] {{
  %state.1 = (s32[]{{:T(128)}}, bf16[2,3,2048,128]{{3,2,1,0}}) parameter(0)
  %limit = s32[]{{:T(128)}} constant(10)
  %counter.1 = s32[]{{:T(128)}} get-tuple-element(%state.1), index=0
  ROOT %goes = pred[]{{:T(512)}} compare(%counter.1, %limit), direction=LT
}}

ENTRY %main (x: bf16[2,3,2048,128]) -> bf16[2,3,2048,128] {{
  %x = bf16[2,3,2048,128]{{3,2,1,0}} parameter(0)
  %zero = s32[]{{:T(128)}} constant(0)
  %start = (s32[]{{:T(128)}}, bf16[2,3,2048,128]{{3,2,1,0}}) tuple(%zero, %x)
  %loop = (s32[]{{:T(128)}}, bf16[2,3,2048,128]{{3,2,1,0}}) while(%start), condition=%condition, body=%body
  ROOT %result = bf16[2,3,2048,128]{{3,2,1,0}} get-tuple-element(%loop), index=1
}}
"""


def test_products_of_splash_as_often_as_they_run():
    """Ten times two and four products of 2 x 3 heads: 10 of 16 tiles of 512 x 512, 128 wide, are computed."""
    program = hlo.read(TEXT, devices=4)
    assert program.flops() == 0
    assert kernels.flops(program) == 10 * (2 + 4) * 2 * (2 * 3) * (10 * 512 * 512) * 128
    assert kernels.unknown(program) == ["gather_of_rows.7"]


@pytest.mark.parametrize(
    ("length", "parts", "tile"), [(2048, 1, 512), (1024, 1, 512), (8192, 4, 512), (1536, 4, 128), (1024, 8, 128)]
)
def test_tiles_are_those_that_splash_visits(length, parts, tile):
    """By its own mask: as many on every device, but where a tile holds two pieces; then those of the last."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    own = length // parts
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    one_head = splash.CausalMask((length, length))
    one_head.q_sequence = Dealing(parts).order(length)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([one_head]),
        block_sizes=splash.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), tile)),
        head_shards=1,
        q_seq_shards=parts,
    )
    mask_1QK = np.asarray(kernel.fwd_mask_info.block_mask)
    masks = np.split(mask_1QK, parts, axis=1)
    most = max(map(np.count_nonzero, masks))
    assert own // 2 % tile or {np.count_nonzero(mask_1QK) for mask_1QK in masks} == {most}
    tiles = ",".join(map(str, masks[0].shape))
    text = "\n".join(
        (
            "ENTRY %main (q: bf16[1,1]) -> bf16[1,1] {",
            f"  %tiles = s8[{tiles}] parameter(0)",
            f"  %queries = bf16[1,1,{own},128] parameter(1)",
            f"  %keys = bf16[1,1,{length},128] parameter(2)",
            f"  ROOT %splash_mha_fwd_no_residuals = bf16[1,1,{own},128] custom-call(%tiles, %queries, %keys), {CALL}",
            "}",
        )
    )
    assert kernels.flops(hlo.read(text, devices=1)) == 2 * 2 * most * tile * tile * 128


def test_the_time_of_kernels_is_part_of_the_step():
    chip = topologies.CHIPS["v5p"]
    cost = Cost(flops=1e12, bytes_accessed=1e9, seconds=0.01, products=1e12, all_products=1e12)
    without, within = (estimates.seconds(cost, estimates.Flops(1e12, 1e12, more), [], chip) for more in (0.0, 4.59e12))
    assert within["kernels"] == pytest.approx(0.01)
    assert within["step"] == pytest.approx(without["step"] + 0.01) == pytest.approx(0.02)
    assert within["utilisation"] == pytest.approx(without["utilisation"] / 2)
    assert within["floors"]["compute"] == pytest.approx(5.59e12 / chip.peak_flops)
