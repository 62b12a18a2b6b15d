"""What lies where, and when it is fetched: the host never keeps devices waiting."""

from types import SimpleNamespace

import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.sharding import check_divides, make_mesh, one_ahead


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_the_next_is_on_its_way_before_a_result_is_waited_for(number):
    log = []

    def dispatch(i):
        log.append(f"dispatch {i}")
        return i

    for i in one_ahead(map(dispatch, range(number))):
        log.append(f"fetch {i}")
    assert sorted(log) == sorted(f"{what} {i}" for i in range(number) for what in ("dispatch", "fetch"))
    assert [entry for entry in log if entry.startswith("fetch")] == [f"fetch {i}" for i in range(number)]
    for i in range(number - 1):
        assert log.index(f"dispatch {i + 1}") < log.index(f"fetch {i}")
    most = np.cumsum([1 if entry.startswith("dispatch") else -1 for entry in log])
    assert most.max(initial=0) <= 2, "and no more than that, for the memory of the devices"


@pytest.mark.usefixtures("wrong_types_allowed")
def test_processes_with_different_numbers_of_devices_are_named():
    devices = [SimpleNamespace(process_index=i) for i in (1, 0, 0)]
    with pytest.raises(CapjaxError, match="in every process of the run, process 0 has 2, process 1 has 1; is one"):
        make_mesh(devices)


@pytest.mark.parametrize(
    ("size", "model_parallel", "message"),
    [
        (12, 1, "a positive multiple of the 8 devices, got 12; try 16"),
        (3, 1, "a positive multiple of the 8 devices, got 3; try 8"),
        (0, 1, "a positive multiple of the 8 devices, got 0; try 8"),
        (-8, 1, "a positive multiple of the 8 devices, got -8; try 8"),
        (6, 2, "a positive multiple of the 4 rows of devices, got 6; try 8"),
    ],
)
def test_a_batch_that_does_not_divide_over_the_devices_is_refused(size, model_parallel, message):
    mesh = make_mesh(model_parallel=model_parallel)
    with pytest.raises(CapjaxError, match=f"^x must be {message}$"):
        check_divides(size, "x", mesh)
    check_divides(24, "x", mesh)
