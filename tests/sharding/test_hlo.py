"""What is read off a compiled program: loops in full, matrix products, collectives with their bytes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from codegen2_jax.sharding import estimates, hlo
from codegen2_jax.sharding.estimates import Cost

TEXT = """HloModule jit_step, is_scheduled=true

%body (state: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %state = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %row = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %step = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%counter, %step), metadata={op_name="while/body"}
  %whole = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%row), channel_id=1, replica_groups=[8,8]<=[64]
  %part = bf16[8,128]{1,0:T(8,128)(2,1)} reduce-scatter(%whole), replica_groups=mesh['a'=8,'b'=8] {'b'}, to_apply=%sum
  ROOT %out = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0}) tuple(%next, %part)
}

%condition (state.1: (s32[], bf16[8,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(10)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %goes = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%zero, %x)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0}) while(%start), condition=%condition, body=%body
  %moved = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %arrived = bf16[8,128]{1,0} collective-permute-done(%moved)
  %view = bf16[8,128]{1,0} custom-call(%x), custom_call_target="ConcatBitcast"
  %begins = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  ROOT %result = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    program = hlo.read(TEXT, devices=64)
    assert program.unknown_loops == []
    by_kind = {one.kind: one for one in program.collectives()}
    assert by_kind["all-gather"].count == by_kind["reduce-scatter"].count == 5  # from 0 to 10 in twos
    assert program.count_calls("ConcatBitcast") == 1
    assert program.count_calls(*estimates.UNMODELLED) == 2


CHAIN = """HloModule jit_step, is_scheduled=true

%starts (a: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %first = bf16[64,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[8,8]<=[64], chain_id="1"
}

%goes_on (b: bf16[8,128]) -> bf16[64,128] {
  %b = bf16[8,128]{1,0} parameter(0)
  ROOT %second = bf16[64,128]{1,0} all-gather(%b), channel_id=7, replica_groups=[8,8]<=[64], chain_id="1"
}

%another (c: bf16[8,128]) -> bf16[64,128] {
  %c = bf16[8,128]{1,0} parameter(0)
  ROOT %third = bf16[64,128]{1,0} all-gather(%c), channel_id=8, replica_groups=[8,8]<=[64], chain_id="2"
}

ENTRY %main (x: bf16[8,128]) -> bf16[64,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %one = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%starts
  %two = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%goes_on
  ROOT %three = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%another
}
"""


def test_a_chain_of_fusions_is_one_collective():
    found = hlo.read(CHAIN, devices=64).collectives()
    assert [(one.kind, one.count, one.payload, one.overlaps) for one in found] == [("all-gather", 1, 16384, True)] * 2


def test_bytes_of_collectives():
    """A row is 2,048 bytes, 8 of them a whole; the ring sends 7/8 of the whole each time."""
    by_kind = {one.kind: one for one in hlo.read(TEXT, devices=64).collectives()}
    for kind in ("all-gather", "reduce-scatter"):
        assert (by_kind[kind].group, by_kind[kind].payload) == (8, 16384)
        assert by_kind[kind].sent == 5 * 16384 * 7 / 8
        assert not by_kind[kind].overlaps
    moved = by_kind["collective-permute"]
    assert moved.payload == moved.sent == 2048
    assert moved.overlaps


@pytest.mark.parametrize(
    ("text", "size"),
    [("bf16[2,3]{1,0}", 12), ("(f32[4], /*index=1*/s8[5]{0:T(128)})", 21), ("pred[]", 1), ("f8e4m3fn[8]", 8)],
)
def test_bytes_of_a_type(text, size):
    assert hlo.num_bytes(text) == size


def test_matrix_products_of_a_scan():
    """Five steps of one product, whatever XLA makes of them; XLA itself counts one."""

    def scanned(x_BD, w_LDD):
        return jax.lax.scan(lambda x_BD, w_DD: (jnp.tanh(x_BD @ w_DD), None), x_BD, w_LDD)[0]

    shapes = ((16, 32), (5, 32, 32))
    compiled = jax.jit(scanned).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    program = hlo.read(compiled.as_text(), devices=1)
    assert program.flops() == 5 * program.flops(once=True) == 5 * 2 * 16 * 32 * 32
    assert program.unknown_loops == []


def test_collectives_of_a_real_program():
    """On eight CPU devices: the gradient of replicated weights is summed once, its bytes those of the weights."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    def gradient(w_DF, x_BD):
        return jax.grad(lambda w_DF: jnp.sum((x_BD @ w_DF) ** 2))(w_DF)

    w = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=whole)
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=rows)
    compiled = jax.jit(gradient, out_shardings=whole).lower(w, x).compile()
    [one] = hlo.read(compiled.as_text(), devices=8).collectives()
    assert (one.kind, one.group, one.payload, one.count) == ("all-reduce", 8, 64 * 32 * 4, 1)
    assert one.sent == 2 * 64 * 32 * 4 * 7 / 8


def test_extrapolation_is_linear_in_the_layers_of_each_kind():
    one, two_a, two_b = Cost(10.0, 100.0, 1.0, 8, 8), Cost(13.0, 120.0, 1.5, 9, 9), Cost(11.0, 101.0, 1.25, 10, 10)
    total = estimates.extrapolated(one, {"a": two_a, "b": two_b}, {"a": 4, "b": 3})
    assert total == Cost(10 + 3 * 3 + 2 * 1, 100 + 3 * 20 + 2 * 1, 1 + 3 * 0.5 + 2 * 0.25, 15, 15)
    unknown = estimates.extrapolated(Cost(10.0, 100.0, None, 8, 8), {"a": two_a}, {"a": 4})
    assert (unknown.flops, unknown.seconds) == (19.0, None)


def test_a_loop_outside_the_layers_is_no_part_of_a_layer():
    """A head of 4 products ten times, ten layers of 10 each: 140 products, and a tenth of a second each."""
    one, two = Cost(14.0, 14.0, 1.4, 14.0, 50.0), Cost(24.0, 24.0, 2.4, 24.0, 60.0)
    total = estimates.extrapolated(one, {"layers": two}, {"layers": 10})
    assert total.flops == total.bytes_accessed == total.all_products == pytest.approx(140)
    assert total.seconds == pytest.approx(14)
