"""Threads that stand for the processes that prepare a corpus together."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from jaxssl.data.team import Team


def run_together(processes, work):
    """Call `work` with each member of a team, in threads that stand for processes."""
    meet, given, made = threading.Barrier(processes), {}, {}

    def gather(process, array):
        given[process] = array
        meet.wait()
        found = np.stack([given[i] for i in range(processes)])
        meet.wait()
        return found

    def one(process):
        try:
            made[process] = work(Team(process, processes, meet.wait, partial(gather, process)))
        except BaseException:
            meet.abort()
            raise

    with ThreadPoolExecutor(processes) as pool:
        for done in [pool.submit(one, process) for process in range(processes)]:
            done.result()
    return [made[process] for process in range(processes)]
