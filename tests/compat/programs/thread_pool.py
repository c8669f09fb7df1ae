"""A service's pool of threads over one session."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ais_bench.infer.interface import InferSession

session = InferSession(0, "add_bs1.om")
shape = session.get_inputs()[0].shape


def work(value):
    a = np.full(shape, value, np.float32)
    b = np.ones(shape, np.float32)
    return session.infer([a, b], "static")[0]


with ThreadPoolExecutor(max_workers=8) as pool:
    result = list(pool.map(work, range(200)))

count = len(session.summary().exec_time_list)
session.free_resource()
