"""Work in threads: results in order, one thread of BLAS each, nothing begun that nobody waits for."""

import threading

import pytest
from threadpoolctl import threadpool_info

from jaxssl.runtime.spread import collect, spread


def test_results_are_in_the_order_of_the_items():
    ticks = []
    with spread(lambda x: x * x, range(50)) as results:
        assert collect(results, lambda: ticks.append(1)) == [x * x for x in range(50)]
    assert len(ticks) == 50


def test_blas_has_one_thread_within_and_as_many_as_before_afterwards():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with spread(lambda _: threads(), [0]) as results:
        assert set(collect(results)[0]) == {1}
    assert threads() == before


def test_an_error_is_raised_where_its_result_is_asked_for():
    with spread(lambda x: 1 // x, [1, 0]) as results:
        assert results[0].result() == 1
        with pytest.raises(ZeroDivisionError):
            collect(results)


def test_what_has_not_begun_when_the_block_is_left_never_is():
    gate, begun = threading.Event(), []

    def wait(item):
        begun.append(item)
        gate.wait(10)

    with spread(wait, range(100)):
        threading.Timer(0.2, gate.set).start()
    assert len(begun) < 100
