"""What lies where, and when it is fetched: the host never keeps devices waiting."""

import numpy as np
import pytest

from capjax.sharding import one_ahead


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
