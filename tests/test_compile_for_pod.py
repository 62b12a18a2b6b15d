"""Steps compiled for TPUs that this machine does not have: the compiler's word, and how its programs are counted."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "experiments" / "compile_for_pod.py"


@pytest.fixture(scope="module")
def counted():
    """The script's functions; it sets variables for a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.environ", {})
        spec = importlib.util.spec_from_file_location("compile_for_pod", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        sys.modules["compile_for_pod"] = module
        spec.loader.exec_module(module)
    return module


def test_operations_are_those_of_products_loops_and_branches(counted):
    def program(x, w, image, kernel):
        x = jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]  # 5 · 2 · 3 · 4 · 4
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: x @ w @ w, x)  # at most 2 · 2 · 3 · 4 · 4
        return x, jax.lax.conv(image, kernel, (1, 1), "VALID")  # 2 · (1 · 6 · 8 · 8) · (2 · 3 · 3)

    shapes = [(3, 4), (4, 4), (1, 2, 10, 10), (6, 2, 3, 3)]
    traced = jax.jit(program).trace(*(jnp.zeros(shape) for shape in shapes))
    assert counted.operations_of(traced.jaxpr.jaxpr) == 5 * 96 + 2 * 96 + 2 * 384 * 18


def test_collectives_are_counted_in_bytes_and_as_often_as_their_loop_runs(counted):
    hlo = """
%body.1 (p: f32[4]) -> f32[4] {
  %a = f32[4]{0} all-reduce(%p), replica_groups={}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%p), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %b = (bf16[2,3]{1,0:T(8,128)(2,1)}, s32[]) all-gather-start(%w), dimensions={0}
  %c = (bf16[2,3], s32[]) all-gather-done(%b)
}
"""
    kinds, total = counted.collectives_of(hlo)
    assert kinds == {"all-reduce": 3, "all-gather": 1}
    assert total == 3 * 16 + 12 + 4


def test_a_training_step_compiles_for_tpus_and_gathers_no_vocabulary(tmp_path):
    pytest.importorskip("libtpu", reason="needs the compiler for TPUs: pip install '.[tpu]'")
    command = [sys.executable, str(SCRIPT), "--recipes", "reference", "--topologies", "v5e:2x2", "--steps", "training"]
    command += ["--model_parallel", "1", "2", "--per_device", "8", f"--out={tmp_path / 'table.md'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines() if "| reference" in line]
    assert [row[3] for row in rows] == ["4 × 1", "2 × 2"]
    operations, peak, arguments = ([float(row[i].split()[0].replace(",", "")) for row in rows] for i in (4, 5, 6))
    assert operations[1] == pytest.approx(operations[0] / 2, rel=0.1)
    assert arguments[1] < 0.75 * arguments[0], "the vocabulary's arrays, and their moments, are split"
    assert 0 < peak[1] < peak[0] < 1000
    assert all(row[7].endswith("all-reduce") and "," not in row[7] for row in rows), "nothing but sums travels"
